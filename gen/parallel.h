// Calls a function for 0 .. count - 1 from one thread per core, in no order.
#ifndef KG_PARALLEL_H
#define KG_PARALLEL_H

// `worker` tells the calling threads apart: 0 .. kg_parallel_workers() - 1.
void kg_parallel(int count, void (*call)(void *context, int index, int worker), void *context);
int kg_parallel_workers(void);

#endif
