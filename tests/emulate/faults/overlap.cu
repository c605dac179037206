#include "common.h"
// Launches that overlap at their edges: a writer, one between, a reader; `fault` = 8 * fault + role. Grid 2, block 32.
//   1  the one behind a writer reads before it waits    2  the one behind a reader writes before it waits
//   3  one between that waits for nobody                4  one between that launches the next before it waits
extern "C" __global__ void __launch_bounds__(32) overlap(const __grid_constant__ planted p)
{
    enum { WRITER, BETWEEN, READER };
    const int role = p.fault & 7, fault = p.fault >> 3, at = blockIdx.x * 32 + threadIdx.x;
    u32 early = 0;
    if (role == BETWEEN) {
        if (fault == 1)
            early = p.out[at];
        if (fault == 2)
            p.out[256 + at] = 7;
        if (fault == 4)
            grid_launch_next();
        if (fault != 3)
            grid_wait();
        grid_launch_next();
        p.out[512 + at] = early;
        return;
    }
    if (role == READER)
        early = fault == 3 ? 0 : p.out[at]; // final unless the one between let this one begin too soon
    grid_wait();
    grid_launch_next();
    if (role == WRITER)
        p.out[at] = p.in[at] + p.in[256 + at] + (fault == 2 ? p.out[256 + at] : 0);
    else
        p.out[640 + at] = p.out[at] + early;
}
