// Copies small host data to the device without making the caller wait or keep it: a ring of pinned memory, each piece
// guarded by an event; the copies of a call share pieces. Waits only where the ring is full of what the device has not done yet.
#ifndef KT_STAGING_H
#define KT_STAGING_H

#include <pthread.h>

#include "driver.h"

enum { KT__STAGING_BYTES = 4 << 20, KT__STAGING_PIECE = KT__STAGING_BYTES / 4, KT__STAGING_MARKS = 256 };

typedef struct {
    const kt__driver *driver;
    unsigned char *memory;       // KT__STAGING_BYTES, pinned
    uint64_t head, tail;         // bytes ever handed out, and ever given back; skipped ends of the ring included
    struct {
        kt__event event;
        uint64_t end;            // `head` after the piece
    } marks[KT__STAGING_MARKS];  // pieces under way, oldest at `first`
    unsigned first, count;
    pthread_mutex_t lock;
} kt__staging;

// The context must be current in each of these. Close waits for what is under way.
kt_status kt__staging_open(const kt__driver *driver, kt__staging *staging);
void kt__staging_close(kt__staging *staging); // a zeroed one is fine
kt_status kt__staging_copy(kt__staging *staging, const kt__copy *copies, int count, kt__stream stream);

#endif
