// Cards that kernels are looked at for without having one: what the division of work and the memory's limits depend on.
#ifndef KG_ARCH_H
#define KG_ARCH_H

typedef struct {
    const char *name, *arch; // "h100", "sm_90a"
    int multiprocessors;
    int shared_limit;        // bytes of shared memory that a block may have
    double bandwidth;        // of the memory as the maker tells it, bytes per second
} kg_card;

extern const kg_card kg_cards[];
extern const int kg_card_count;

#endif
