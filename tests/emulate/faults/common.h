// What the planted kernels share. `fault` picks the fault; with 0 a kernel is sound and nothing may be reported.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct {
    const u32 *in; // [1024], initialised
    u32 *out;      // [1024], not initialised
    int *counter;  // [4], zero
    int fault;
} planted;
