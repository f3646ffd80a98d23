// The next token of every row of logits. settings: six numbers a row: temperature (0: the likeliest), top_k (0: off),
// top_p (1: off), min_p (0: off), a uniform random number in 0..1, and whether the answer goes to `others` instead of
// `answers`. There, [row]: the token, and [room + row]: the logarithm of its probability under the unchanged logits. `next`, if
// it is there, receives the tokens too.
//
// `parts` blocks share a row: block p has its columns p * share.. and, if `kept`, brings them into shared memory once.
// They are a cluster and tell each other maxima and sums, which are joined in the order of the blocks, so that bits
// repeat. One block a row where there are no clusters.

#define THREADS 1024
#define MOST_PARTS 8

struct Best {
    float value;
    int at;
};

struct Sum {
    float weight, count;
    // The weight of the blocks before this one.
    float before;
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
            mine = parts[lane];
        }
    }
    return mine;
}

// What the block with this rank keeps at `mine`.
template <class Word> __device__ __forceinline__ Word heard(const Word* mine, int rank, int parts) {
    if (parts == 1) return *mine;
    u32 words[sizeof(Word) / 4];
    const u32 there = peer(shared_at(mine), rank);
#pragma unroll
    for (int i = 0; i < sizeof(Word) / 4; i++) peer_load(words[i], there + 4 * i);
    Word word;
    memcpy(&word, words, sizeof(Word));
    return word;
}

// The blocks of a row. Words go to one of two places in turn, so that one barrier is enough: a place is written again
// only after everyone has left the barrier that follows its reading.
struct Row {
    int part, parts, turn;

    template <class Word, class Join> __device__ __forceinline__ Word all(Word mine, Join join) {
        __shared__ Word told[2], joined[2];
        turn ^= 1;
        if (threadIdx.x == 0) told[turn] = mine;
        if (parts > 1) cluster_sync();
        if (threadIdx.x == 0) {
            Word words[MOST_PARTS];
#pragma unroll
            for (int rank = 0; rank < MOST_PARTS; rank++)
                if (rank < parts) words[rank] = heard(told + turn, rank, parts);
            Word word = words[0];
#pragma unroll
            for (int rank = 1; rank < MOST_PARTS; rank++)
                if (rank < parts) word = join(word, words[rank], rank);
            joined[turn] = word;
        }
        __syncthreads();
        return joined[turn];
    }

    __device__ __forceinline__ Best best(Best mine) {
        return all(mine, [](Best a, Best b, int) { return better(a, b); });
    }

    __device__ __forceinline__ Sum sum(float weight, float count) {
        const int own = part;
        return all(Sum{weight, count, 0.0f}, [own](Sum a, Sum b, int rank) {
            return Sum{a.weight + b.weight, a.count + b.count, rank == own ? a.weight : a.before};
        });
    }
};

__device__ __forceinline__ u32 ordered(float x) {
    u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(
    u32* answers, u32* others, u32* next, const float* logits, const float* settings, int room, int vocab, int parts,
    int share, int kept) {
    extern __shared__ float own[];
    wait_for_previous();
    const int index = blockIdx.x / parts;
    Row row = {(int)blockIdx.x % parts, parts, 0};
    const int begin = row.part * share, count = max(0, min(share, vocab - begin));
    const float *whole = logits + (i64)index * vocab, *x = whole + begin;
    if (kept) {
#pragma unroll 8
        for (int at = threadIdx.x; at < count; at += THREADS) own[at] = x[at];
        __syncthreads();
        x = own;
    }
    const float* set = settings + index * 6;
    const float temperature = set[0], top_k = set[1], top_p = set[2], min_p = set[3], uniform = set[4];

    Best best = {-INFINITY, 0x7fffffff};
    for (int at = threadIdx.x; at < count; at += THREADS) best = better(best, {x[at], begin + at});
    best = row.best(block_best(best));
    float total[1] = {0.0f};
    for (int at = threadIdx.x; at < count; at += THREADS) total[0] += expf(x[at] - best.value);
    block_sum(total);
    const float mass = row.sum(total[0], 0.0f).weight;

    int token = best.at;
    if (temperature > 0.0f) {
        const float sharpness = 1.0f / temperature;
        float least = -INFINITY;
        const auto weight_of = [&](float x) { return expf((x - best.value) * sharpness); };
        // How many numbers are at least `from`, and what their weights sum to.
        const auto mass_from = [&](float from) {
            float sums[2] = {0.0f, 0.0f};
            for (int at = threadIdx.x; at < count; at += THREADS) {
                if (x[at] >= from) {
                    sums[0] += weight_of(x[at]);
                    sums[1] += 1.0f;
                }
            }
            block_sum(sums);
            return row.sum(sums[0], sums[1]);
        };
        // The largest number from which on there is enough.
        const auto search = [&](float weight, float count) {
            u32 key = 0;
            for (int bit = 31; bit >= 0; bit--) {
                const u32 tried = key | (1u << bit);
                const Sum sum = mass_from(unordered(tried));
                if (sum.weight >= weight && sum.count >= count) key = tried;
            }
            return unordered(key);
        };
        // Equals of the last that is kept stay too.
        if (top_k > 0.0f && top_k < vocab) least = search(0.0f, top_k);
        if (top_p < 1.0f) least = fmaxf(least, search(top_p * mass_from(least).weight, 0.0f));
        if (min_p > 0.0f) least = fmaxf(least, best.value + logf(min_p) * temperature);

        // Each thread owns a stretch of the row, so that stretches are in order of the tokens.
        __shared__ float stretches[THREADS];
        __shared__ int found;
        const int each = (share + THREADS - 1) / THREADS, first = min((int)threadIdx.x * each, count);
        const int last = min(first + each, count);
        float mine = 0.0f;
        for (int at = first; at < last; at++)
            if (x[at] >= least) mine += weight_of(x[at]);
        float up_to = mine;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const float lower = __shfl_up_sync(0xffffffffu, up_to, step);
            if (threadIdx.x % 32 >= step) up_to += lower;
        }
        stretches[threadIdx.x] = up_to;
        if (threadIdx.x == 0) found = -1;
        __syncthreads();
        float warps = 0.0f;
        for (int warp = 0; warp < threadIdx.x / 32; warp++) warps += stretches[warp * 32 + 31];
        __syncthreads();
        stretches[threadIdx.x] = warps + up_to;
        __syncthreads();
        const Sum sum = row.sum(stretches[THREADS - 1], 0.0f);
        const float wanted = uniform * sum.weight;
        const float before = sum.before + (threadIdx.x > 0 ? stretches[threadIdx.x - 1] : 0.0f);
        if (mine > 0.0f && before <= wanted && wanted < sum.before + stretches[threadIdx.x]) {
            float left = wanted - before;
            int chosen = -1;
            for (int at = first; at < last; at++) {
                if (x[at] >= least) {
                    chosen = begin + at;
                    left -= weight_of(x[at]);
                    if (left < 0.0f) break;
                }
            }
            found = chosen;
        }
        __syncthreads();
        // Rounding may leave nobody at the very end.
        const Best chosen = row.best({found >= 0 ? 1.0f : 0.0f, found});
        if (chosen.value > 0.0f) token = chosen.at;
    }
    if (row.part == 0 && threadIdx.x == 0) {
        u32* answer = (set[5] > 0.0f ? others : answers) + index;
        if (next) next[index] = token;
        answer[0] = token;
        ((float*)answer)[room] = whole[token] - best.value - logf(mass);
    }
    // Nobody leaves while others may read its words.
    if (parts > 1) cluster_sync();
}
