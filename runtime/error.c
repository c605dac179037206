#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE = 4096 };
static _Thread_local char message[MESSAGE];

kt_status kt__fail(kt_status status, const char *format, ...)
{
    char text[MESSAGE]; // the arguments may point into the message
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(message, text, sizeof text);
    return status;
}

kt_status kt__within(kt_status status, const char *format, ...)
{
    char text[MESSAGE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, ": %.*s", (int)(sizeof text - used), message);
    memcpy(message, text, sizeof text);
    return status;
}

const char *kt_message(void) { return message; }

const char *kt_status_name(kt_status status)
{
    switch (status) {
#define X(name, code, text) case name: return #name;
        KT_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}
