// The next token of every row of logits, one block of 1024 threads a row. settings: six numbers a row: temperature (0:
// the likeliest), top_k (0: off), top_p (1: off), min_p (0: off), a uniform random number in 0..1, unused.
// tokens[row], log_probs[row]: the token, and the logarithm of its probability under the unchanged logits.

struct Best {
    float value;
    int at;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

__device__ Best block_best(Best mine) {
    __shared__ Best parts[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int pass = 0; pass < 2; pass++) {
#pragma unroll
        for (int step = 16; step > 0; step >>= 1)
            mine = better(mine, {__shfl_xor_sync(0xffffffffu, mine.value, step), __shfl_xor_sync(0xffffffffu, mine.at, step)});
        if (pass == 0) {
            __syncthreads();
            if (lane == 0) parts[warp] = mine;
            __syncthreads();
            mine = lane < blockDim.x / 32 ? parts[lane] : Best{-INFINITY, 0x7fffffff};
        }
    }
    return mine;
}

// For every thread: how many numbers are at least `least`, and what their weights sum to.
struct Mass {
    float weight;
    int count;
};

__device__ Mass mass_from(const float* x, int n, float least, float highest, float sharpness) {
    float sums[2] = {0.0f, 0.0f};
    for (int at = threadIdx.x; at < n; at += blockDim.x) {
        if (x[at] >= least) {
            sums[0] += expf((x[at] - highest) * sharpness);
            sums[1] += 1.0f;
        }
    }
    block_sum(sums);
    return {sums[0], (int)sums[1]};
}

__device__ __forceinline__ u32 ordered(float x) {
    u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

extern "C" __global__ void __launch_bounds__(1024) sample(
    u32* tokens, float* log_probs, const float* logits, const float* settings, int vocab) {
    const float* x = logits + (i64)blockIdx.x * vocab;
    const float* set = settings + blockIdx.x * 6;
    float temperature = set[0], top_k = set[1], top_p = set[2], min_p = set[3], uniform = set[4];
    Best best = {-INFINITY, 0x7fffffff};
    for (int at = threadIdx.x; at < vocab; at += blockDim.x) best = better(best, {x[at], at});
    best = block_best(best);
    float total[1] = {0.0f};
    for (int at = threadIdx.x; at < vocab; at += blockDim.x) total[0] += expf(x[at] - best.value);
    block_sum(total);
    int token = best.at;
    if (temperature > 0.0f) {
        float sharpness = 1.0f / temperature, least = -INFINITY;
        if (top_k > 0.0f && top_k < vocab) {
            // The largest number that at least k reach. Equals of it stay too.
            u32 key = 0;
            for (int bit = 31; bit >= 0; bit--) {
                u32 tried = key | (1u << bit);
                if (mass_from(x, vocab, unordered(tried), best.value, sharpness).count >= (int)top_k) key = tried;
            }
            least = unordered(key);
        }
        if (top_p < 1.0f) {
            float wanted = top_p * mass_from(x, vocab, least, best.value, sharpness).weight;
            u32 key = 0;
            for (int bit = 31; bit >= 0; bit--) {
                u32 tried = key | (1u << bit);
                if (mass_from(x, vocab, unordered(tried), best.value, sharpness).weight >= wanted) key = tried;
            }
            least = fmaxf(least, unordered(key));
        }
        if (min_p > 0.0f) least = fmaxf(least, best.value + logf(min_p) * temperature);
        // Each thread owns a stretch of the row, so that stretches are in order of the tokens.
        __shared__ float stretches[1024];
        __shared__ int found;
        int each = (vocab + blockDim.x - 1) / blockDim.x, first = threadIdx.x * each, last = min(first + each, vocab);
        // Read together, summed apart: the warp walks through the stretches of its lanes one after another.
        float mine = 0.0f;
        for (int owner = 0; owner < 32; owner++) {
            int from = (threadIdx.x / 32 * 32 + owner) * each, to = min(from + each, vocab);
            float sum = 0.0f;
            for (int at = from + threadIdx.x % 32; at < to; at += 32)
                if (x[at] >= least) sum += expf((x[at] - best.value) * sharpness);
            sum = warp_sum(sum);
            if (owner == threadIdx.x % 32) mine = sum;
        }
        __syncthreads();
        stretches[threadIdx.x] = mine;
        if (threadIdx.x == 0) found = -1;
        __syncthreads();
        for (int step = 1; step < 1024; step *= 2) {
            float before = threadIdx.x >= step ? stretches[threadIdx.x - step] : 0.0f;
            __syncthreads();
            stretches[threadIdx.x] += before;
            __syncthreads();
        }
        float wanted = uniform * stretches[1023];
        float before = threadIdx.x > 0 ? stretches[threadIdx.x - 1] : 0.0f;
        if (mine > 0.0f && before <= wanted && wanted < stretches[threadIdx.x]) {
            float left = wanted - before;
            int chosen = -1;
            for (int at = first; at < last; at++) {
                if (x[at] >= least) {
                    chosen = at;
                    left -= expf((x[at] - best.value) * sharpness);
                    if (left < 0.0f) break;
                }
            }
            found = chosen;
        }
        __syncthreads();
        if (found >= 0) token = found;
    }
    if (threadIdx.x == 0) {
        tokens[blockIdx.x] = token;
        log_probs[blockIdx.x] = x[token] - best.value - logf(total[0]);
    }
}
