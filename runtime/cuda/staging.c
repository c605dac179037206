#include "staging.h"

#include <string.h>

enum { ALIGNMENT = 16 };

static uint64_t room_of(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

kt_status kt__staging_open(const kt__driver *driver, kt__staging *s)
{
    memset(s, 0, sizeof *s);
    void *memory = 0;
    int result = driver->host_alloc(&memory, KT__STAGING_BYTES, 0);
    if (result)
        return kt__driver_fail(driver, result, "%d bytes of pinned host memory", KT__STAGING_BYTES);
    s->driver = driver;
    s->memory = memory;
    pthread_mutex_init(&s->lock, 0);
    for (int i = 0; i < KT__STAGING_MARKS; i++)
        if ((result = driver->event_create(&s->marks[i].event, KT__EVENT_NO_TIMING))) {
            const kt_status status = kt__driver_fail(driver, result, "creating an event");
            kt__staging_close(s);
            return status;
        }
    return KT_OK;
}

// Takes back the oldest piece.
static int retire(kt__staging *s)
{
    const int result = s->driver->event_synchronize(s->marks[s->first].event);
    if (result)
        return result;
    s->tail = s->marks[s->first].end;
    s->first = (s->first + 1) % KT__STAGING_MARKS;
    s->count--;
    return 0;
}

void kt__staging_close(kt__staging *s)
{
    if (!s->memory)
        return;
    while (s->count && !retire(s))
        ;
    for (int i = 0; i < KT__STAGING_MARKS; i++)
        if (s->marks[i].event)
            s->driver->event_destroy(s->marks[i].event);
    s->driver->host_free(s->memory);
    pthread_mutex_destroy(&s->lock);
    memset(s, 0, sizeof *s);
}

// Copies that take `room` bytes in all, at most KT__STAGING_PIECE: a piece, which never wraps.
static int copy_piece(kt__staging *s, const kt__copy *copies, int count, uint64_t room, kt__stream stream)
{
    const uint64_t offset = s->head % KT__STAGING_BYTES;
    const uint64_t start = offset + room > KT__STAGING_BYTES ? s->head - offset + KT__STAGING_BYTES : s->head;
    int result = 0;
    while (s->count == KT__STAGING_MARKS || start + room - s->tail > KT__STAGING_BYTES)
        if ((result = retire(s)))
            return result;

    unsigned char *at = s->memory + start % KT__STAGING_BYTES;
    for (int i = 0; i < count && !result; i++) {
        memcpy(at, copies[i].from, copies[i].bytes);
        result = s->driver->copy_to_device((kt__address)(uintptr_t)copies[i].to, at, copies[i].bytes, stream);
        at += room_of(copies[i].bytes);
    }
    const unsigned last = (s->first + s->count) % KT__STAGING_MARKS;
    if (result || (result = s->driver->event_record(s->marks[last].event, stream))) {
        s->driver->stream_synchronize(stream); // nothing guards the piece
        return result;
    }
    s->marks[last].end = s->head = start + room;
    s->count++;
    return 0;
}

// One copy that is larger than a piece.
static int copy_large(kt__staging *s, const kt__copy *copy, kt__stream stream)
{
    int result = 0;
    for (size_t done = 0, n; done < copy->bytes && !result; done += n) {
        n = copy->bytes - done < KT__STAGING_PIECE ? copy->bytes - done : KT__STAGING_PIECE;
        const kt__copy part = {(char *)copy->to + done, (const char *)copy->from + done, n};
        result = copy_piece(s, &part, 1, room_of(n), stream);
    }
    return result;
}

kt_status kt__staging_copy(kt__staging *s, const kt__copy *copies, int count, kt__stream stream)
{
    int result = 0;
    size_t bytes = 0;
    pthread_mutex_lock(&s->lock);
    for (int i = 0, n; i < count && !result; i += n) {
        uint64_t room = 0;
        for (n = 0; i + n < count && room + room_of(copies[i + n].bytes) <= KT__STAGING_PIECE; n++) {
            room += room_of(copies[i + n].bytes);
            bytes += copies[i + n].bytes;
        }
        if (n) {
            result = copy_piece(s, copies + i, n, room, stream);
        } else {
            bytes += copies[i].bytes;
            result = copy_large(s, &copies[i], stream);
            n = 1;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return result ? kt__driver_fail(s->driver, result, "copying %zu bytes to the device", bytes) : KT_OK;
}
