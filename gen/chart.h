// Pictures as inline SVG for pages of HTML; their colours are classes of templates/report.css.
#ifndef KG_CHART_H
#define KG_CHART_H

#include <stdbool.h>

#include "text.h"

// Text for HTML: & < > and quotes become entities.
void kg_html(kg_text *out, const char *text);

typedef struct {
    const char *name;
    double x, y;  // x > 0; y 0 is drawn below the axis
    int number;   // shown beside the dot; 0: none
    bool front;   // joined by a line, in the order of the dots
} kg_dot;

// Both axes are logarithmic. The labels say what the axes are.
void kg_chart_dots(kg_text *out, const char *x_label, const char *y_label, const kg_dot *dots, int count);

// Eight steps of colour, logarithmic between the least and the largest number that is not 0; infinity is the largest.
typedef struct {
    double least, most;
} kg_ramp;
kg_ramp kg_ramp_of(const double *numbers, int count);

// A grid of numbers, [rows, columns], with labels of rows (null: their number) and columns ("layer 3": column_label and a number),
// numbers written into cells that are wide enough. Shown in percent.
void kg_chart_heat(kg_text *out, const char *const *row_labels, const char *row_label, int rows, const char *column_label, int columns,
                   const double *numbers, kg_ramp ramp);

// Rows of shares between 0 and 1, [rows, columns], cells side by side: 0 is not drawn.
void kg_chart_shares(kg_text *out, const char *const *row_labels, int rows, int columns, const double *shares);

// A histogram: bars of the counts' shares, with their codes below.
void kg_chart_bars(kg_text *out, const char *title, const double *counts, int count);

#endif
