// The score of a channel under `random`: plain integer arithmetic, the same in the CPU reference and in every kernel.
#ifdef __CUDACC__
#define KT_HASH_FUNCTION __device__ __forceinline__
#else
#define KT_HASH_FUNCTION static inline
#endif

// The finaliser of splitmix64: a bijection in which every input bit reaches every output bit.
KT_HASH_FUNCTION unsigned long long kt_mix(unsigned long long x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// `page` is the page's position in its sequence, so neither slot nor pool page matters. 24 bits: exact in fp32.
KT_HASH_FUNCTION float kt_random_score(int seed, int layer, int head, int page, int channel)
{
    unsigned long long x = kt_mix((unsigned)seed);
    x = kt_mix(x ^ (unsigned)layer);
    x = kt_mix(x ^ (unsigned)head);
    x = kt_mix(x ^ (unsigned)page);
    x = kt_mix(x ^ (unsigned)channel);
    return (float)(int)(x >> 40);
}
