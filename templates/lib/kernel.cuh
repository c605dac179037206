//@ include "lib/params.h"

//@ include "lib/primitives.cuh"

//@ include "lib/elements.cuh"

//@ include "lib/page.cuh"

