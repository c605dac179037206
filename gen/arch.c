#include "arch.h"

#include "layout.h"

// From the makers' data sheets.
const kg_card kg_cards[] = {
    {"a100", "sm_80", 108, 163 * 1024, 2.04e12},         {"a10", "sm_86", 72, KG_SMALL_SHARED, 0.60e12},
    {"rtx3090", "sm_86", 82, KG_SMALL_SHARED, 0.94e12},  {"rtx4090", "sm_89", 128, KG_SMALL_SHARED, 1.01e12},
    {"l40s", "sm_89", 142, KG_SMALL_SHARED, 0.86e12},    {"h100", "sm_90a", 132, KG_LARGE_SHARED, 3.35e12},
    {"h200", "sm_90a", 132, KG_LARGE_SHARED, 4.80e12},   {"b200", "sm_100a", 148, KG_LARGE_SHARED, 8.00e12},
    {"rtx5090", "sm_120a", 170, KG_SMALL_SHARED, 1.79e12},
};
const int kg_card_count = sizeof kg_cards / sizeof *kg_cards;
