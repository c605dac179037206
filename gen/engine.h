// Engines straight from specs, for commands that run kernels.
#ifndef KG_ENGINE_H
#define KG_ENGINE_H

#include <stddef.h>

#include "kitty.h"
#include "spec.h"

// Emits the spec's package into a temporary folder and opens it on the device. Returns an exit code (text.h) with a message.
int kg_engine_open(const kg_spec *spec, kt_device device, kt_engine **engine, char *error, size_t error_size);
// The same of `count` layers, each as that layer of the spec's model; null: all of the model's.
int kg_engine_open_layers(const kg_spec *spec, const int *layers, int count, kt_device device, kt_engine **engine, char *error,
                          size_t error_size);

// The exit code for a failed call of libkitty.
int kg_exit_code(kt_status status);

#endif
