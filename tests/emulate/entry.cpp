// The translation unit of one emulated kernel: the emitted source, unchanged, and a door to its entry.
// EMULATE_SOURCE: its path, quoted; EMULATE_ENTRY: the kernel's name.
#include "emulate.h"
#include EMULATE_SOURCE

template <class P> static void emulate_call(void (*kernel)(P), const void *params)
{
    kernel(*(const P *)params);
}
template <class P> static constexpr unsigned long emulate_size(void (*)(P)) { return sizeof(P); }

extern "C" __attribute__((visibility("default"))) void emulate_entry(const void *params)
{
    emulate_call(EMULATE_ENTRY, params);
}
extern "C" __attribute__((visibility("default"))) unsigned long emulate_params_bytes() { return emulate_size(EMULATE_ENTRY); }
#ifdef EMULATE_CHECKS
extern "C" __attribute__((visibility("default"))) const char emulate_checked = 1;
#endif
