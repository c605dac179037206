// Reads .safetensors files: 8 bytes of little-endian header length, a JSON header, then the tensors' bytes without gaps.
// The file is mapped; nothing is converted. Every tensor is checked when the file is opened, so that whoever holds a
// kg_tensor may read `bytes` bytes of it.
#ifndef KG_SAFETENSORS_H
#define KG_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KG_TENSOR_RANK = 8 };

typedef struct {
    const char *name;  // the file's, valid until it is closed
    const char *dtype; // "F16", "BF16", "F32", "U8", ...; static
    int rank;
    int64_t shape[KG_TENSOR_RANK];
    const void *data;  // row major, little endian, not necessarily aligned
    size_t bytes;
} kg_tensor;

typedef struct kg_safetensors kg_safetensors;

// False, with a message that begins with the path, for a missing, truncated or malformed file.
bool kg_safetensors_open(const char *path, kg_safetensors **file, char *error, size_t error_size);
void kg_safetensors_close(kg_safetensors *file); // null is fine

const char *kg_safetensors_path(const kg_safetensors *file);
// Tensors by number, 0 .. count - 1, in the order of their names.
int kg_safetensors_count(const kg_safetensors *file);
const kg_tensor *kg_safetensors_at(const kg_safetensors *file, int index);
// Null where the file has no tensor of that name.
const kg_tensor *kg_safetensors_find(const kg_safetensors *file, const char *name);
// A string of the header's __metadata__, or null.
const char *kg_safetensors_metadata(const kg_safetensors *file, const char *key);

// The tensor of that name, whose dtype must be in `dtypes` ("F16 BF16", null: any) and whose shape must be `shape`; -1
// stands for any length, named by labels[i] in messages. Null, with file, tensor, expected and found, if not.
const kg_tensor *kg_safetensors_require(const kg_safetensors *file, const char *name, const char *dtypes, int rank,
                                        const int64_t *shape, const char *const *labels, char *error, size_t error_size);

// Writes "[1024, 3, 64]" and returns text.
char *kg_tensor_shape(const kg_tensor *tensor, char *text, size_t size);

#endif
