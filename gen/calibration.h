// Calibration: what a spec takes from a file. A .safetensors file has, as far as the spec asks for it,
//   key.boosted [layers, kv_heads, boosted channels] U8, I32 or I64: channels, in any order, none twice
//   key.rotation, value.rotation [layers or 1, kv_heads or 1, head_dim, head_dim] F16, BF16 or F32: R, orthogonal; x is sealed as R x
#ifndef KG_CALIBRATION_H
#define KG_CALIBRATION_H

#include "format.h"
#include "spec.h"

// Finds spec->calibration in the first of the two folders (null: none) that has it, checks all that the spec takes from it, and fills the
// spec's calibration_path and calibration_sha256. Returns KG_OK, KG_USER or KG_MACHINE.
int kg_calibration_find(kg_spec *spec, const char *const folders[2], char *error, size_t error_size);

// *tables: [layers, kv_heads, format->table_bytes], *size bytes, the caller's to free; null where table_bytes is 0.
int kg_calibration_read(const kg_spec *spec, const kt_format *format, unsigned char **tables, size_t *size, char *error, size_t error_size);

#endif
