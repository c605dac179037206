#include "staging.h"

#include <string.h>

enum { ALIGNMENT = 256 };

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

// One piece of at most KT__STAGING_PIECE bytes, which never wraps.
static int copy_piece(kt__staging *s, kt__address to, const void *from, size_t bytes, kt__stream stream)
{
    const uint64_t room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, offset = s->head % KT__STAGING_BYTES;
    const uint64_t start = offset + room > KT__STAGING_BYTES ? s->head - offset + KT__STAGING_BYTES : s->head;
    int result;
    while (s->count == KT__STAGING_MARKS || start + room - s->tail > KT__STAGING_BYTES)
        if ((result = retire(s)))
            return result;

    unsigned char *piece = s->memory + start % KT__STAGING_BYTES;
    memcpy(piece, from, bytes);
    if ((result = s->driver->copy_to_device(to, piece, bytes, stream)))
        return result;
    const unsigned last = (s->first + s->count) % KT__STAGING_MARKS;
    if ((result = s->driver->event_record(s->marks[last].event, stream))) {
        s->driver->stream_synchronize(stream); // nothing guards the piece
        return result;
    }
    s->marks[last].end = s->head = start + room;
    s->count++;
    return 0;
}

kt_status kt__staging_copy(kt__staging *s, kt__address to, const void *from, size_t bytes, kt__stream stream)
{
    int result = 0;
    pthread_mutex_lock(&s->lock);
    for (size_t done = 0, n; done < bytes && !result; done += n) {
        n = bytes - done < KT__STAGING_PIECE ? bytes - done : KT__STAGING_PIECE;
        result = copy_piece(s, to + done, (const char *)from + done, n, stream);
    }
    pthread_mutex_unlock(&s->lock);
    return result ? kt__driver_fail(s->driver, result, "copying %zu bytes to the device", bytes) : KT_OK;
}
