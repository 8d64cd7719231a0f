"""``python -m benchmarks.speed NAME``: the table of benchmarks of speed and memory."""

from benchmarks.command import Benchmark, main

R = "docs/results/"
BENCHMARKS = {
    "overhead": Benchmark(
        "what the TPM adds to a denoising step, and hooks and the lazy schedule to a call",
        "a minute on two cores",
        "runs/bench/overhead.json",
    ),
    "rollout_speed": Benchmark(
        "images a second with finished images leaving the batch and staying; the TPM's share of a step; update passes",
        "minutes on two cores, or on a GPU with --shape sd3-medium",
        R + "rollout-speed-small.json",
    ),
    "rollout_ways": Benchmark(
        "continuous rollouts compared with batches that wait, in calls of the denoiser and CPU time",
        "minutes on one core",
        R + "rollout-ways.json",
    ),
    "training": Benchmark(
        "training compared with a plain loop, shares of its time, two processes, memory of the rollout buffer",
        "half an hour on two cores, or on a GPU with --shape sd3-medium",
        R + "training.json",
        "training-speed.md",
        "training speed",
    ),
    "serving": Benchmark(
        "throughput, latency and equality of step-level batches compared with static ones",
        "an hour on two cores, or on a GPU with --shape sd3-medium",
        R + "serving.json",
        "serving.md",
    ),
    "cold_start": Benchmark(
        "time from the start of `tpdm serve` to its first image", "a minute on two cores", R + "cold-start.json"
    ),
    "real_size": Benchmark(
        "operations and replay memory of the TPM compared with published denoisers; only shapes, no computation",
        "a minute on any machine",
        R + "real-size.json",
        "pipelines.md",
        "real size",
    ),
    "memory_plan": Benchmark(
        "GPU and host memory that the recipes of SD3 Medium and FLUX.1-dev need; only shapes, no computation",
        "half a minute on any machine",
        R + "memory-plan.json",
        "pipelines.md",
        "memory",
    ),
}

if __name__ == "__main__":
    main("benchmarks.speed", BENCHMARKS)
