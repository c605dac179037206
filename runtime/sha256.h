// SHA-256 (FIPS 180-4): digests of emitted sources, keys of the cubin cache.
#ifndef KT_SHA256_H
#define KT_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { KT__SHA256_BYTES = 32, KT__SHA256_HEX = 65 };

typedef struct {
    uint32_t state[8];
    uint64_t bytes;
    unsigned char block[64];
} kt__sha256;

void kt__sha256_begin(kt__sha256 *sha);
void kt__sha256_add(kt__sha256 *sha, const void *data, size_t bytes);
void kt__sha256_end(kt__sha256 *sha, unsigned char digest[KT__SHA256_BYTES]);

void kt__sha256_hex(const unsigned char digest[KT__SHA256_BYTES], char hex[KT__SHA256_HEX]);
// Digest of one buffer as lower-case hex, zero-terminated.
void kt__sha256_text(const void *data, size_t bytes, char hex[KT__SHA256_HEX]);

#endif
