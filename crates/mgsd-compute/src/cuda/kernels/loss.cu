// Losses over rows of logits, one block a row. Logits are 32-bit floats; their gradient is of type T and may stand in
// their place when T is a 32-bit float. Results of row i of `rows` lie in `out` as four lists of `rows` numbers: loss,
// log-probability of the target, entropy, whether the target is the likeliest.

// Running sums of a softmax: s = sum e^(x - m), b = sum (x - m) e^(x - m).
struct Softmax {
    float m, s, b;
};

__device__ __forceinline__ Softmax merged(Softmax a, Softmax c) {
    float m = fmaxf(a.m, c.m);
    if (m == -INFINITY) return {m, 0.0f, 0.0f};
    float fa = a.m == -INFINITY ? 0.0f : __expf(a.m - m), fc = c.m == -INFINITY ? 0.0f : __expf(c.m - m);
    float ba = a.m == -INFINITY ? 0.0f : (a.b + a.s * (a.m - m)) * fa;
    float bc = c.m == -INFINITY ? 0.0f : (c.b + c.s * (c.m - m)) * fc;
    return {m, a.s * fa + c.s * fc, ba + bc};
}

// For every thread of the block.
__device__ Softmax block_softmax(Softmax mine) {
    __shared__ Softmax parts[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
    for (int pass = 0; pass < 2; pass++) {
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) {
            Softmax other = {__shfl_xor_sync(0xffffffffu, mine.m, step), __shfl_xor_sync(0xffffffffu, mine.s, step),
                             __shfl_xor_sync(0xffffffffu, mine.b, step)};
            mine = merged(mine, other);
        }
        if (pass == 0) {
            __syncthreads();
            if (lane == 0) parts[warp] = mine;
            __syncthreads();
            mine = lane < warps ? parts[lane] : Softmax{-INFINITY, 0.0f, 0.0f};
        }
    }
    return mine;
}

// Every number of a row takes part.
struct All {
    __device__ bool operator()(int, float) const { return true; }
};

// The k largest of the teacher's, the first ones among equals.
struct Chosen {
    float least;
    int cut;
    __device__ bool operator()(int at, float y) const { return y > least || (y == least && at < cut); }
};

template <class Member> __device__ Softmax row_softmax(const float* x, const float* chooser, int n, Member member) {
    Softmax mine = {-INFINITY, 0.0f, 0.0f};
    int at = threadIdx.x;
    for (; at + 3 * blockDim.x < n; at += 4 * blockDim.x) {
        float v[4];
        float m = mine.m;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int place = at + i * blockDim.x;
            v[i] = x[place];
            if (!member(place, chooser[place])) v[i] = -INFINITY;
            m = fmaxf(m, v[i]);
        }
        if (m == -INFINITY) continue;
        if (m > mine.m) {
            if (mine.m > -INFINITY) {
                float f = __expf(mine.m - m);
                mine.b = (mine.b + mine.s * (mine.m - m)) * f;
                mine.s *= f;
            }
            mine.m = m;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (v[i] > -INFINITY) {
                float e = __expf(v[i] - m);
                mine.s += e;
                mine.b += (v[i] - m) * e;
            }
        }
    }
    for (; at < n; at += blockDim.x)
        if (member(at, chooser[at])) mine = merged(mine, {x[at], 1.0f, 0.0f});
    return block_softmax(mine);
}

struct Row {
    float log_prob, entropy, lse;
    bool correct;
};

__device__ Row row_stats(const float* x, int n, u32 target) {
    Softmax all = row_softmax(x, x, n, All());
    float log_sum = logf(all.s), at_target = x[target];
    return {at_target - all.m - log_sum, log_sum - all.b / all.s, all.m + log_sum, at_target >= all.m};
}

__device__ __forceinline__ void report(float* out, int rows, int row, float loss, const Row& stats) {
    if (threadIdx.x == 0) {
        out[row] = loss;
        out[rows + row] = stats.log_prob;
        out[2 * rows + row] = stats.entropy;
        out[3 * rows + row] = stats.correct ? 1.0f : 0.0f;
    }
}

// dlogits = scale * d log p(target) / d logits
__device__ __forceinline__ void log_prob_gradient(T* dx, const float* x, int n, u32 target, float lse, float scale) {
    __syncthreads();
    for (int at = threadIdx.x; at < n; at += blockDim.x) {
        float p = __expf(x[at] - lse);
        dx[at] = narrow<T>(scale * ((at == (int)target ? 1.0f : 0.0f) - p));
    }
}

extern "C" __global__ void cross_entropy(
    T* dlogits, const float* logits, float* out, const u32* targets, const float* weights, int vocab, int first, int rows,
    int slope) {
    int row = first + blockIdx.x;
    const float* x = logits + (i64)blockIdx.x * vocab;
    Row stats = row_stats(x, vocab, targets[row]);
    report(out, rows, row, -stats.log_prob, stats);
    if (slope) log_prob_gradient(dlogits + (i64)blockIdx.x * vocab, x, vocab, targets[row], stats.lse, -weights[row]);
}

extern "C" __global__ void policy_gradient(
    T* dlogits, const float* logits, float* out, const u32* targets, const float* weights, const float* old_log_prob,
    const float* advantage, float low, float high, float dual_factor, int vocab, int first, int rows, int slope) {
    int row = first + blockIdx.x;
    const float* x = logits + (i64)blockIdx.x * vocab;
    Row stats = row_stats(x, vocab, targets[row]);
    float a = advantage[row], ratio = expf(stats.log_prob - old_log_prob[row]);
    float free = -a * ratio, bounded = -a * fminf(fmaxf(ratio, 1.0f - low), 1.0f + high), dual = -dual_factor * a;
    float loss, by_log_prob;
    if (a < 0.0f && dual < fmaxf(free, bounded)) {
        loss = dual, by_log_prob = 0.0f;
    } else if (bounded > free) {
        loss = bounded, by_log_prob = 0.0f;
    } else {
        loss = free, by_log_prob = free;
    }
    report(out, rows, row, loss, stats);
    if (slope)
        log_prob_gradient(
            dlogits + (i64)blockIdx.x * vocab, x, vocab, targets[row], stats.lse, weights[row] * by_log_prob);
}

#define REVERSE_KL 0
#define FORWARD_KL 1
#define JSD 2

// log((1 - beta) e^lp + beta e^lq), given the logarithms of the shares
__device__ __forceinline__ float log_mixture(float lp, float lq, float log_ours, float log_theirs) {
    float a = lp + log_ours, b = lq + log_theirs;
    float high = fmaxf(a, b);
    return high + log1pf(expf(fminf(a, b) - high));
}

template <class Member>
__device__ float divergence(
    int kind, float beta, T* dx, const float* x, const float* y, int n, float x_lse, float y_lse, float weight, int slope,
    Member member) {
    float log_ours = logf(1.0f - beta), log_theirs = logf(beta);
    float sums[2] = {0.0f, 0.0f};
    for (int at = threadIdx.x; at < n; at += blockDim.x) {
        if (!member(at, y[at])) continue;
        float lp = x[at] - x_lse, lq = y[at] - y_lse;
        if (kind == REVERSE_KL) {
            sums[0] += expf(lp) * (lp - lq);
        } else if (kind == FORWARD_KL) {
            sums[0] += expf(lq) * (lq - lp);
        } else {
            float lm = log_mixture(lp, lq, log_ours, log_theirs);
            sums[0] += expf(lp) * (lp - lm);
            sums[1] += expf(lq) * (lq - lm);
        }
    }
    block_sum(sums);
    if (slope) {
        for (int at = threadIdx.x; at < n; at += blockDim.x) {
            float d = 0.0f;
            if (member(at, y[at])) {
                float lp = x[at] - x_lse, lq = y[at] - y_lse;
                if (kind == REVERSE_KL) {
                    d = weight * expf(lp) * (lp - lq - sums[0]);
                } else if (kind == FORWARD_KL) {
                    d = weight * (expf(lp) - expf(lq));
                } else {
                    float lm = log_mixture(lp, lq, log_ours, log_theirs);
                    d = weight * (1.0f - beta) * expf(lp) * (lp - lm - sums[0]);
                }
            }
            dx[at] = narrow<T>(d);
        }
    }
    return kind == JSD ? (1.0f - beta) * sums[0] + beta * sums[1] : sums[0];
}

__device__ __forceinline__ int block_count(int mine) {
    __shared__ int total;
    __syncthreads();
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    int sum = __reduce_add_sync(0xffffffffu, mine);
    if (threadIdx.x % 32 == 0) atomicAdd(&total, sum);
    __syncthreads();
    return total;
}

// An order-preserving map of floats to unsigned numbers, and back.
__device__ __forceinline__ u32 ordered(float x) {
    u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The k largest of a row: the k-th largest number, and how far among its equals.
__device__ Chosen chosen(const float* y, int n, int k) {
    u32 key = 0;
    for (int bit = 31; bit >= 0; bit--) {
        u32 tried = key | (1u << bit);
        int mine = 0;
        for (int at = threadIdx.x; at < n; at += blockDim.x) mine += ordered(y[at]) >= tried;
        if (block_count(mine) >= k) key = tried;
    }
    int mine = 0;
    for (int at = threadIdx.x; at < n; at += blockDim.x) mine += ordered(y[at]) > key;
    int left = k - block_count(mine);
    // The smallest bound below which `left` of the equals lie.
    int low = 0, high = n;
    while (low < high) {
        int middle = (low + high) / 2;
        mine = 0;
        for (int at = threadIdx.x; at < middle; at += blockDim.x) mine += ordered(y[at]) == key;
        if (block_count(mine) >= left) high = middle;
        else low = middle + 1;
    }
    return {unordered(key), low};
}

extern "C" __global__ void distill(
    T* dlogits, const float* logits, const float* theirs, float* out, float* teacher_log_prob, const u32* targets,
    const float* weights, int kind, float beta, int top_k, int vocab, int first, int rows, int slope) {
    int row = first + blockIdx.x;
    const float* x = logits + (i64)blockIdx.x * vocab;
    const float* y = theirs + (i64)blockIdx.x * vocab;
    T* dx = dlogits + (i64)blockIdx.x * vocab;
    Row stats = row_stats(x, vocab, targets[row]), teacher = row_stats(y, vocab, targets[row]);
    float loss;
    if (top_k > 0) {
        Chosen member = chosen(y, vocab, top_k);
        Softmax ours = row_softmax(x, y, vocab, member), other = row_softmax(y, y, vocab, member);
        __syncthreads();
        loss = divergence(
            kind, beta, dx, x, y, vocab, ours.m + logf(ours.s), other.m + logf(other.s), weights[row], slope, member);
    } else {
        __syncthreads();
        loss = divergence(kind, beta, dx, x, y, vocab, stats.lse, teacher.lse, weights[row], slope, All());
    }
    report(out, rows, row, loss, stats);
    if (threadIdx.x == 0) teacher_log_prob[row] = teacher.log_prob;
}

extern "C" __global__ void log_probs(const float* logits, float* out, const u32* targets, int vocab, int first, int rows) {
    int row = first + blockIdx.x;
    Row stats = row_stats(logits + (i64)blockIdx.x * vocab, vocab, targets[row]);
    report(out, rows, row, -stats.log_prob, stats);
}
