"""Where the time of decode steps goes: kernels of a few steps by group, and the time in which none ran.

The profiler slows the host, so steps that are not captured idle longer here than in the table. "matmul" also holds the
products of attention where PyTorch takes its plain implementation. On the CPU, PyTorch's operators stand for kernels, and
KittyCache's own time, which is in none of them, is idle.
"""

import re

import torch
from torch.profiler import ProfilerActivity, profile

from .throughput_step import timed

# The first that matches; names of kernels, and of operators on the CPU.
GROUPS = [
    ("attend", r"kitty_attend|flash|fmha|sdpa|scaled_dot_product|efficient_attention|attention"),
    ("append", r"kitty_(append|advance|check)"),
    ("matmul", r"gemm|gemv|cutlass|nvjet|xmma|wgmma|splitK|cublas|aten::(mm|addmm|bmm|matmul|linear)"),
    ("copies of the cache", r"CatArray|aten::cat|index_copy|[Mm]emcpy|copy_kernel|aten::copy_"),
]


def group_of(name):
    return next((group for group, pattern in GROUPS if re.search(pattern, name)), "other")


def take_profile(run, steps, device):
    """({group: us per step}, {kernel: us per step}) of run(steps); the group "idle" is what is left of the wall time."""
    cuda = device.type == "cuda"
    run(1)
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])) as recorded:
        wall = timed(run, steps, device) * 1e6
    spans, kernels = [], {}
    for event in recorded.events():
        if getattr(event, "is_user_annotation", False):  # a range with kernels inside
            continue
        if cuda and event.device_type == torch.autograd.DeviceType.CUDA:
            spans.append((event.time_range.start, event.time_range.end))
            kernels[event.name] = kernels.get(event.name, 0) + event.time_range.elapsed_us()
        elif not cuda:
            kernels[event.name] = kernels.get(event.name, 0) + event.self_cpu_time_total
    busy = union(spans) if cuda else sum(kernels.values())
    groups = {}
    for name, us in kernels.items():
        groups[group_of(name)] = groups.get(group_of(name), 0) + us
    groups["idle"] = max(wall - busy, 0)
    return tuple({name: us / steps for name, us in sorted(part.items(), key=lambda item: -item[1])} for part in (groups, kernels))


def union(spans):
    """Length of what the spans cover together: kernels overlap."""
    total, reached = 0, float("-inf")
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def print_profile(title, groups, kernels, most=8):
    whole = sum(groups.values()) or 1
    print(f"\n{title}, us per step")
    for name, us in groups.items():
        print(f"  {us:10.1f}  {100 * us / whole:5.1f} %  {name}")
    print("  the longest:")
    for name, us in list(kernels.items())[:most]:
        print(f"  {us:10.1f}  {name[:110]}")
