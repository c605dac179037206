// The kittygen command: finds the subcommand.
#include "command.h"
#include "kitty.h"
#include "text.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"check", "check specs; show their page format and memory", kg_command_check},
    {"new", "write a spec from a Hugging Face config.json", kg_command_new},
    {"emit", "write a kernel package: manifest.json and CUDA sources", kg_command_emit},
    {"build", "compile a kernel package ahead of time", kg_command_build},
    {"run", "run a kernel package on data or random tensors, against a reference", kg_command_run},
    {"inspect", "show a page byte by byte, memory, and what a step's kernels cost", kg_command_inspect},
    {"explore", "compare variants on a model's own keys and values: memory, errors, time", kg_command_explore},
    {"tune", "measure which kernels are the fastest on a GPU, and keep that", kg_command_tune},
    {"bench", "time the kernels on a GPU, beside its bandwidth", kg_command_bench},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void print_help(void)
{
    printf("usage: kittygen COMMAND ...\n\n"
           "Generates kernels for a low-bit KV cache from a spec: a model's shape and a quantisation variant.\n\n"
           "commands:\n");
    for (int i = 0; i < COMMANDS; i++)
        printf("  %-8s %s\n", commands[i].name, commands[i].help);
    printf("\nkittygen COMMAND --help explains one; kittygen check --fields lists what a spec may say.\n"
           "A SPEC is a .lua file, or MODEL/VARIANT of the shipped ones: qwen3-8b/kitty-pro, qwen3-8b/kitty,fp16, or\n"
           "qwen3-8b for every variant.\n\n"
           "exit codes: 0 done, 1 a check failed, 2 wrong input, 3 the machine (GPU, NVRTC, disk)\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "kittygen: no command; see kittygen --help\n");
        return KG_USER;
    }
    int code = -1;
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        print_help();
        code = KG_OK;
    } else if (!strcmp(argv[1], "--version")) {
        printf("kittygen %s\n", KT_VERSION);
        code = KG_OK;
    }
    const char *names[COMMANDS];
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
        if (!strcmp(argv[1], commands[i].name))
            code = commands[i].run(argc - 1, argv + 1);
    }
    if (code < 0)
        code = kg_usage_error("kittygen", "unknown command", argv[1], names, COMMANDS);
    // A full disk or a closed pipe shows only now.
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "kittygen: cannot write to the standard output\n");
        return KG_MACHINE;
    }
    return code;
}
