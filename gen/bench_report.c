// Rows: shares and ratios, the table, JSON.
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static double fp16_time(const kg_bench *b, const kg_row *row)
{
    for (int i = b->row_count - 1; i >= 0; i--) {
        const kg_row *r = &b->rows[i];
        if (!strcmp(r->spec->variant, "fp16") && !strcmp(r->spec->model.name, row->spec->model.name) && !strcmp(r->op, row->op) &&
            r->spec->model.dtype == row->spec->model.dtype && r->sequences == row->sequences && r->context == row->context)
            return r->time.us;
    }
    return 0;
}

void kg_bench_heading(const kg_bench *b)
{
    printf("%s, %d multiprocessors, %.0f MB of L2; read %.2f TB/s, copy %.2f TB/s (both ways)\n", b->gpu.name, b->gpu.multiprocessors,
           (double)b->gpu.l2_bytes / 1e6, b->read_rate / 1e12, b->copy_rate / 1e12);
    printf("us: microseconds per layer, the median (step: the mean) and the 10th to 90th percentile; %%: of the larger bandwidth\n");
    printf("%-15s %-28s %-13s %10s %21s %9s %7s %6s %7s\n", "op", "spec", "B x T", "us", "p10 to p90", "MB", "GB/s", "%", "x fp16");
}

static void print_row(const kg_row *r)
{
    char shape[32], range[40], bytes[64] = "        -       -      -", ratio[16] = "-";
    snprintf(shape, sizeof shape, "%d x %d", r->sequences, r->context);
    snprintf(range, sizeof range, "%.2f to %.2f", r->time.low, r->time.high);
    if (r->bytes > 0)
        snprintf(bytes, sizeof bytes, "%9.3f %7.0f %6.1f", r->bytes / 1e6, r->bytes / r->time.us / 1e3, 100 * r->share);
    if (r->ratio_fp16 > 0)
        snprintf(ratio, sizeof ratio, "%.2f", r->ratio_fp16);
    printf("%-15s %-28s %-13s %10.2f %21s %s %7s", r->op, r->spec->name, shape, r->time.us, range, bytes, ratio);
    if (r->step_begin_us > 0)
        printf("  kt_step_begin %.2f us", r->step_begin_us);
    if (r->ratio_equal > 0)
        printf("  %.2f x the speed of equal lengths", r->ratio_equal);
    if (r->layers > 0)
        printf("  %d layers", r->layers);
    printf("\n");
    fflush(stdout);
}

int kg_bench_row(kg_bench *b, kg_row row)
{
    const double rate = b->read_rate > b->copy_rate ? b->read_rate : b->copy_rate, fp16 = fp16_time(b, &row);
    row.share = row.bytes > 0 ? row.bytes / (row.time.us * 1e-6) / rate : 0;
    if (row.bytes > 0)
        row.ratio_fp16 = !strcmp(row.spec->variant, "fp16") ? 1 : fp16 > 0 ? fp16 / row.time.us : 0;
    if (row.share > 1)
        return kg_fail(KG_FAILED, b->error, KG_ERROR, "%s of %s, %d x %d: %.3f MB in %.2f us is %.0f %% of the card's bandwidth: more than it has, so "
                       "that the data was in its L2 cache, or the measurement is wrong", row.op, row.spec->name, row.sequences, row.context,
                       row.bytes / 1e6, row.time.us, 100 * row.share);
    if (b->row_count == b->row_room) {
        const int room = b->row_room ? 2 * b->row_room : 64;
        kg_row *rows = realloc(b->rows, (size_t)room * sizeof *rows);
        if (!rows)
            return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
        b->rows = rows;
        b->row_room = room;
    }
    b->rows[b->row_count++] = row;
    if (!b->json) {
        kg_progress_clear(&b->progress);
        print_row(&row);
    }
    return KG_OK;
}

static void add_number(kg_text *out, const char *name, double number, bool known)
{
    kg_text_addf(out, known ? ", \"%s\": %.6g" : ", \"%s\": null", name, number);
}

static void add_row(kg_text *out, const kg_bench *b, const kg_row *r)
{
    kg_text_addf(out, "{\"op\": \"%s\", \"model\": ", r->op);
    kg_text_json(out, r->spec->model.name);
    kg_text_add(out, ", \"variant\": ");
    kg_text_json(out, r->spec->variant);
    kg_text_addf(out, ", \"sequences\": %d, \"context\": %d, \"q_heads\": %d, \"kv_heads\": %d, \"head_dim\": %d, \"dtype\": \"%s\"", r->sequences,
                 r->context, r->spec->model.q_heads, r->spec->model.kv_heads, r->spec->model.head_dim, r->spec->model.dtype ? "bf16" : "fp16");
    add_number(out, "us", r->time.us, true);
    add_number(out, "us_p10", r->time.low, true);
    add_number(out, "us_p90", r->time.high, true);
    kg_text_addf(out, r->bytes > 0 ? ", \"bytes\": %.0f" : ", \"bytes\": null", r->bytes);
    add_number(out, "bandwidth_share", r->share, r->bytes > 0);
    add_number(out, "ratio_fp16", r->ratio_fp16, r->ratio_fp16 > 0);
    kg_text_add(out, ", \"ratio_cudnn\": null");
    if (r->ratio_equal > 0)
        add_number(out, "ratio_equal", r->ratio_equal, true);
    if (r->step_begin_us > 0)
        add_number(out, "step_begin_us", r->step_begin_us, true);
    add_number(out, "error", r->error, r->error > 0);
    kg_text_addf(out, ", \"layers\": %d, \"device\": ", r->layers);
    kg_text_json(out, b->gpu.name);
    kg_text_add(out, "}");
}

void kg_bench_json(const kg_bench *b)
{
    kg_text out = {0};
    kg_text_addf(&out, "[{\"op\": \"bandwidth\", \"read\": %.6g, \"copy\": %.6g, \"device\": ", b->read_rate, b->copy_rate);
    kg_text_json(&out, b->gpu.name);
    kg_text_add(&out, "}");
    for (int i = 0; i < b->row_count; i++) {
        kg_text_add(&out, ",\n ");
        add_row(&out, b, &b->rows[i]);
    }
    kg_text_add(&out, "]\n");
    fputs(out.failed ? "" : out.data, stdout);
    kg_text_free(&out);
}
