#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { MOST = 64 };

typedef struct {
    atomic_int next;
    int count;
    void (*call)(void *, int, int);
    void *context;
} work;

typedef struct {
    work *work;
    int worker;
} share;

static void *take(void *argument)
{
    const share *s = argument;
    for (int i; (i = atomic_fetch_add(&s->work->next, 1)) < s->work->count;)
        s->work->call(s->work->context, i, s->worker);
    return 0;
}

int kg_parallel_workers(void)
{
    cpu_set_t set;
    const int cores = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return cores < 1 ? 1 : cores > MOST ? MOST : cores;
}

void kg_parallel(int count, void (*call)(void *, int, int), void *context)
{
    work work = {.count = count, .call = call, .context = context};
    const int workers = kg_parallel_workers();
    share shares[MOST];
    pthread_t threads[MOST];
    int started = 1;
    shares[0] = (share){&work, 0};
    // A thread that cannot be had is no error: the others take its share.
    for (; started < workers && started < count; started++) {
        shares[started] = (share){&work, started};
        if (pthread_create(&threads[started], 0, take, &shares[started]))
            break;
    }
    take(&shares[0]);
    for (int i = 1; i < started; i++)
        pthread_join(threads[i], 0);
}
