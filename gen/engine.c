#include "engine.h"

#include "emit.h"
#include "temporary.h"

int kg_exit_code(kt_status status)
{
    switch (status) {
    case KT_OK:
        return KG_OK;
    case KT_UNSUPPORTED:
    case KT_DEVICE:
    case KT_COMPILE:
    case KT_IO:
    case KT_MEMORY:
        return KG_MACHINE;
    default:
        return KG_FAILED;
    }
}

int kg_engine_open_layers(const kg_spec *spec, const int *layers, int count, kt_device device, kt_engine **engine, char *error,
                          size_t error_size)
{
    char folder[KG_PATH];
    kg_package package;
    int code = kg_temporary_make(folder, error, error_size);
    if (code)
        return code;
    code = kg_package_make(spec, 0, &package, error, error_size);
    if (!code && layers)
        code = kg_package_take(&package, layers, count, error, error_size);
    if (!code)
        code = kg_package_write(&package, folder, error, error_size);
    kg_package_free(&package);
    if (!code) {
        const kt_status status = kt_open(&(kt_open_args){.size = sizeof(kt_open_args), .package = folder, .device = device}, engine);
        if (status)
            code = kg_fail(kg_exit_code(status), error, error_size, "kt_open: %s: %s", kt_status_name(status), kt_message());
    }
    kg_temporary_remove(folder); // an engine has read its package whole
    return code;
}

int kg_engine_open(const kg_spec *spec, kt_device device, kt_engine **engine, char *error, size_t error_size)
{
    return kg_engine_open_layers(spec, 0, 0, device, engine, error, error_size);
}
