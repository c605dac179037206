// What every Check suite needs: calls of libkitty that must succeed or fail just so, and a main.
#ifndef KT_TEST_SUITE_H
#define KT_TEST_SUITE_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "kitty.h"

// Check's own write a file at every call: in loops over bytes that takes longer than all else.
#undef ck_assert_msg
#define ck_assert_msg(expression, ...)     \
    do {                                   \
        if (!(expression))                 \
            ck_abort_msg(__VA_ARGS__);     \
    } while (0)
#undef ck_assert
#define ck_assert(expression) ck_assert_msg(expression, "%s", "assertion '" #expression "' failed")

#define OK(call)                                                                             \
    do {                                                                                     \
        const kt_status status_ = (call);                                                    \
        ck_assert_msg(!status_, "%s: %s: %s", #call, kt_status_name(status_), kt_message()); \
    } while (0)

// The call fails with this status and exactly this message.
#define FAILS(status, message, call)                                                                            \
    do {                                                                                                        \
        const kt_status got_ = (call);                                                                          \
        ck_assert_msg(got_ == (status), "%s gave %s, not %s", #call, kt_status_name(got_), kt_status_name(status)); \
        ck_assert_str_eq(kt_message(), message);                                                                \
    } while (0)

// Runs a shell command: its exit code; what it prints, up to size - 1 bytes, is in `output`.
static inline int run_shell(const char *command, char *output, size_t size)
{
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    output[fread(output, 1, size - 1, pipe)] = 0;
    const int status = pclose(pipe);
    ck_assert_msg(WIFEXITED(status), "%s: ended by a signal", command);
    return WEXITSTATUS(status);
}

// Runs the suite and frees it; main's exit code.
static inline int run_suite(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

#endif
