#include "chart.h"

#include <math.h>
#include <stdio.h>

enum { WIDTH = 960, HEIGHT = 430, LEFT = 70, RIGHT = 20, TOP = 16, BOTTOM = 52, STEPS = 8 };

void kg_html(kg_text *out, const char *text)
{
    for (; *text; text++) {
        const char *entity = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : *text == '"' ? "&quot;" : 0;
        if (entity)
            kg_text_add(out, entity);
        else
            kg_text_bytes(out, text, 1);
    }
}

// ---- dots ------------------------------------------------------------------------------------------------------------

typedef struct {
    double low, high; // logarithms
} axis;

static axis axis_of(const kg_dot *dots, int count, bool vertical)
{
    axis a = {INFINITY, -INFINITY};
    for (int i = 0; i < count; i++) {
        const double n = vertical ? dots[i].y : dots[i].x;
        if (n > 0 && isfinite(n)) {
            a.low = fmin(a.low, log(n));
            a.high = fmax(a.high, log(n));
        }
    }
    if (a.low > a.high)
        a = (axis){0, 1};
    const double margin = fmax(0.05 * (a.high - a.low), 0.03);
    return (axis){a.low - margin, a.high + margin};
}

static double place(axis a, double n) { return (log(n) - a.low) / (a.high - a.low); }

static double x_at(axis a, double n) { return LEFT + place(a, n) * (WIDTH - LEFT - RIGHT); }

// 0 lies on the axis itself.
static double y_at(axis a, double n)
{
    const double from_below = n > 0 ? isfinite(n) ? place(a, n) : 1 : 0;
    return HEIGHT - BOTTOM - from_below * (HEIGHT - TOP - BOTTOM);
}

// Up to about eight round numbers: of 1, 2, 5 in a decade where it is long, of more where it is short.
static void add_ticks(kg_text *out, axis a, bool vertical, const char *unit)
{
    static const double few[] = {1, 2, 5}, some[] = {1, 1.5, 2, 3, 4, 5, 6, 8}, many[] = {1,   1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2,
                                                                                          2.4, 2.6, 2.8, 3,   3.5, 4,   4.5, 5,   6,   7,   8, 9};
    const double decades = (a.high - a.low) / log(10);
    const double *marks = decades > 1.5 ? few : decades > 0.6 ? some : many;
    const int count = decades > 1.5 ? 3 : decades > 0.6 ? 8 : 24;
    for (int e = (int)floor(a.low / log(10)); e <= (int)ceil(a.high / log(10)); e++)
        for (int i = 0; i < count; i++) {
            const double n = marks[i] * pow(10, e), at = place(a, n);
            if (at < 0 || at > 1)
                continue;
            if (vertical)
                kg_text_addf(out, "<path class=\"grid\" d=\"M%d %.1fH%d\"/><text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g%s</text>\n",
                             LEFT, y_at(a, n), WIDTH - RIGHT, LEFT - 8, y_at(a, n) + 4, n, unit);
            else
                kg_text_addf(out, "<path class=\"grid\" d=\"M%.1f %dV%d\"/><text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.4g%s</text>\n",
                             x_at(a, n), TOP, HEIGHT - BOTTOM, x_at(a, n), HEIGHT - BOTTOM + 18, n, unit);
        }
}

void kg_chart_dots(kg_text *out, const char *x_label, const char *y_label, const kg_dot *dots, int count)
{
    const axis x = axis_of(dots, count, false), y = axis_of(dots, count, true);
    kg_text_addf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    kg_html(out, y_label);
    kg_text_add(out, " over ");
    kg_html(out, x_label);
    kg_text_add(out, "\">\n");
    add_ticks(out, x, false, "");
    add_ticks(out, y, true, "");
    kg_text_addf(out, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/>\n", LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT);
    kg_text_addf(out, "<text class=\"label\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10);
    kg_html(out, x_label);
    kg_text_addf(out, "</text>\n<text class=\"label\" transform=\"translate(16 %d) rotate(-90)\" text-anchor=\"middle\">", (TOP + HEIGHT - BOTTOM) / 2);
    kg_html(out, y_label);
    kg_text_add(out, "</text>\n<path class=\"front\" d=\"");
    double before = 0;
    bool begun = false;
    for (int i = 0; i < count; i++)
        if (dots[i].front) { // along steps: what lies above and to the right of the line is worse
            if (begun)
                kg_text_addf(out, "H%.1fV%.1f", x_at(x, dots[i].x), y_at(y, dots[i].y));
            else
                kg_text_addf(out, "M%.1f %.1f", x_at(x, dots[i].x), y_at(y, dots[i].y));
            begun = true;
        }
    kg_text_add(out, "\"/>\n");
    for (int front = 0; front < 2; front++) { // the front on top
        before = -INFINITY;
        for (int i = 0; i < count; i++) {
            if (dots[i].front != front)
                continue;
            const double cx = x_at(x, dots[i].x), cy = y_at(y, dots[i].y);
            kg_text_addf(out, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%d\"><title>", front ? "dot on" : "dot", cx, cy, front ? 6 : 4);
            kg_html(out, dots[i].name);
            kg_text_addf(out, ": %.4g, %.4g</title></circle>\n", dots[i].x, dots[i].y);
            if (dots[i].number) { // neighbours' numbers are set apart
                kg_text_addf(out, "<text class=\"number\" x=\"%.1f\" y=\"%.1f\">%d</text>\n", cx + (cx - before < 14 ? 10 : 6),
                             cy - (cx - before < 14 ? 2 : 8), dots[i].number);
                before = cx;
            }
        }
    }
    kg_text_add(out, "</svg>\n");
}

// ---- grids -----------------------------------------------------------------------------------------------------------

kg_ramp kg_ramp_of(const double *numbers, int count)
{
    kg_ramp ramp = {INFINITY, 0};
    for (int i = 0; i < count; i++)
        if (numbers[i] > 0 && isfinite(numbers[i])) {
            ramp.least = fmin(ramp.least, numbers[i]);
            ramp.most = fmax(ramp.most, numbers[i]);
        }
    return ramp;
}

static int step_of(kg_ramp ramp, double n)
{
    if (!(n > 0) || ramp.least > ramp.most)
        return 0;
    if (!(n < ramp.most))
        return STEPS - 1;
    return (int)((STEPS - 1) * log(n / ramp.least) / log(ramp.most / ramp.least) + 0.5);
}

void kg_chart_heat(kg_text *out, const char *const *row_labels, const char *row_label, int rows, const char *column_label, int columns,
                   const double *numbers, kg_ramp ramp)
{
    enum { ROW = 20, NAME = 200, HEAD = 22, WRITTEN = 38 };
    const double room = (double)(WIDTH - NAME) / columns, cell = room < 60 ? room : 60;
    const int every = (int)ceil(24 / cell); // columns between two labels
    kg_text_addf(out, "<svg class=\"heat\" viewBox=\"0 0 %.0f %d\" style=\"max-width:%.0fpx\" role=\"img\">\n", NAME + cell * columns, HEAD + ROW * rows,
                 NAME + cell * columns);
    kg_text_addf(out, "<text class=\"tick\" x=\"%d\" y=\"14\" text-anchor=\"end\">", NAME - 8);
    kg_html(out, column_label);
    kg_text_add(out, "</text>\n");
    for (int c = 0; c < columns; c += every)
        kg_text_addf(out, "<text class=\"tick\" x=\"%.1f\" y=\"14\" text-anchor=\"middle\">%d</text>\n", NAME + cell * (c + 0.5), c);
    for (int r = 0; r < rows; r++) {
        kg_text_addf(out, "<text class=\"name\" x=\"%d\" y=\"%d\" text-anchor=\"end\">", NAME - 8, HEAD + ROW * r + 14);
        if (row_labels)
            kg_html(out, row_labels[r]);
        else
            kg_text_addf(out, "%s %d", row_label, r);
        kg_text_add(out, "</text>\n");
        for (int c = 0; c < columns; c++) {
            const double n = numbers[r * columns + c];
            const int step = step_of(ramp, n);
            kg_text_addf(out, "<rect class=\"h%d\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"><title>", step, NAME + cell * c, HEAD + ROW * r,
                         cell - (cell > 4), ROW - 1);
            if (row_labels) {
                kg_html(out, row_labels[r]);
                kg_text_addf(out, ", %s %d: %.3f %%</title></rect>\n", column_label, c, 100 * n);
            } else
                kg_text_addf(out, "%s %d, %s %d: %.3f %%</title></rect>\n", row_label, r, column_label, c, 100 * n);
            if (cell >= WRITTEN)
                kg_text_addf(out, "<text class=\"cell t%d\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.*f</text>\n", step, NAME + cell * (c + 0.5),
                             HEAD + ROW * r + 14, n < 0.0995 ? 2 : 1, 100 * n);
        }
    }
    kg_text_add(out, "</svg>\n");
}

void kg_chart_shares(kg_text *out, const char *const *row_labels, int rows, int columns, const double *shares)
{
    enum { ROW = 16, NAME = 200, HEAD = 20 };
    const double cell = (double)(WIDTH - NAME) / columns;
    kg_text_addf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\">\n<text class=\"tick\" x=\"%d\" y=\"13\" text-anchor=\"end\">channel</text>\n", WIDTH,
                 HEAD + ROW * rows, NAME - 8);
    for (int c = 0; c < columns; c += columns > 128 ? 32 : 16)
        kg_text_addf(out, "<text class=\"tick\" x=\"%.1f\" y=\"13\">%d</text>\n", NAME + cell * c, c);
    for (int r = 0; r < rows; r++) {
        kg_text_addf(out, "<text class=\"name\" x=\"%d\" y=\"%d\" text-anchor=\"end\">", NAME - 8, HEAD + ROW * r + 12);
        kg_html(out, row_labels[r]);
        kg_text_addf(out, "</text>\n<rect class=\"h0\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", NAME, HEAD + ROW * r, WIDTH - NAME, ROW - 2);
        for (int step = 1; step < STEPS; step++) { // a path for all cells of a colour
            bool begun = false;
            for (int c = 0; c < columns; c++) {
                if ((int)ceil(shares[r * columns + c] * (STEPS - 1) - 1e-9) != step)
                    continue;
                if (!begun)
                    kg_text_addf(out, "<path class=\"h%d\" d=\"", step);
                kg_text_addf(out, "M%.1f %dh%.1fv%dh-%.1f", NAME + cell * c, HEAD + ROW * r, cell, ROW - 2, cell);
                begun = true;
            }
            if (begun)
                kg_text_add(out, "z\"/>\n");
        }
    }
    kg_text_add(out, "</svg>\n");
}

// ---- bars ------------------------------------------------------------------------------------------------------------

void kg_chart_bars(kg_text *out, const char *title, const double *counts, int count)
{
    enum { BARS_WIDTH = 290, BARS_HEIGHT = 130, FLOOR = 104, CEILING = 24 };
    double sum = 0, most = 0;
    for (int i = 0; i < count; i++) {
        sum += counts[i];
        most = fmax(most, counts[i]);
    }
    kg_text_addf(out, "<svg class=\"bars\" viewBox=\"0 0 %d %d\" role=\"img\"><text class=\"name\" x=\"0\" y=\"13\">", BARS_WIDTH, BARS_HEIGHT);
    kg_html(out, title);
    kg_text_add(out, "</text>\n");
    const double cell = (double)BARS_WIDTH / count;
    for (int i = 0; i < count && sum > 0; i++) {
        const double height = (FLOOR - CEILING) * counts[i] / most;
        kg_text_addf(out, "<rect class=\"bar\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>code %d: %.2f %%</title></rect>"
                     "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d</text>\n", cell * i + 1, FLOOR - height, cell - 2, height, i,
                     100 * counts[i] / sum, cell * (i + 0.5), FLOOR + 16, i);
    }
    kg_text_add(out, "</svg>\n");
}
