// Generation: one new token a row against the keys and values kept of its sequence, and the storing of those.
// The cache is [slots, kv_heads, capacity, HEAD_DIM], once for keys and once for values. CAUSAL has no meaning here.

#define THREADS 128
#define WARPS (THREADS / 32)
// Keys that a warp takes at a time.
#define PIECE 16
#define CHUNK (WARPS * PIECE)
// Query heads that one key-value head may serve.
#define MOST_HEADS 16

// The part of a row's positions that a block reads. The rest of the grid has none.
struct Share {
    int start, end, parts;
};

__device__ __forceinline__ Share share_of(int length) {
    const int chunks = (length + CHUNK - 1) / CHUNK, splits = gridDim.x;
    const int each = max(1, (chunks + splits - 1) / splits);
    Share share;
    share.parts = max(1, (chunks + each - 1) / each);
    share.start = min(length, (int)blockIdx.x * each * CHUNK);
    share.end = min(length, share.start + each * CHUNK);
    return share;
}

__device__ __forceinline__ void add_scaled(float4 &sum, float weight, float4 x) {
    sum.x = fmaf(weight, x.x, sum.x);
    sum.y = fmaf(weight, x.y, sum.y);
    sum.z = fmaf(weight, x.z, sum.z);
    sum.w = fmaf(weight, x.w, sum.w);
}

__device__ __forceinline__ void store_four(number *to, float4 x, float factor) {
#if BF16
    *(uint2 *)to = make_uint2(pack(x.x * factor, x.y * factor), pack(x.z * factor, x.w * factor));
#else
    to[0] = x.x * factor, to[1] = x.y * factor, to[2] = x.z * factor, to[3] = x.w * factor;
#endif
}

// Joins what the warps of a block found (sums in `found`, [WARPS][MOST_HEADS][HEAD_DIM]; highest score in powers of two
// and total in `state`), and then what the blocks of a row found. The last block to arrive does the latter, in the
// order of the parts, so that the result does not depend on who was last.
__device__ __forceinline__ void join(
    number *out, float *partial, u32 *arrived, const float *found, const float2 (*state)[MOST_HEADS], Share share,
    int group, int out_stride
) {
    __shared__ bool last;
    const int split = blockIdx.x, splits = gridDim.x, row = blockIdx.z, rows = gridDim.z;
    const int kv_head = blockIdx.y, head0 = kv_head * group, heads = gridDim.y * group;
    float2 *states = (float2 *)(partial + (long long)rows * heads * splits * HEAD_DIM);
    out += (long long)row * out_stride + head0 * HEAD_DIM;
    __syncthreads();
    for (int i = threadIdx.x * 4; i < group * HEAD_DIM; i += THREADS * 4) {
        const int g = i / HEAD_DIM, d = i % HEAD_DIM;
        float top = -INFINITE, total = 0.0f;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, state[w][g].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float weight = state[w][g].y > 0.0f ? exp2_fast(state[w][g].x - top) : 0.0f;
            total = fmaf(weight, state[w][g].y, total);
            add_scaled(sum, weight, *(const float4 *)(found + (w * MOST_HEADS + g) * HEAD_DIM + d));
        }
        if (share.parts == 1) {
            store_four(out + i, sum, total > 0.0f ? 1.0f / total : 0.0f);
        } else {
            const long long at = ((long long)row * heads + head0 + g) * splits + split;
            __stcg((float4 *)(partial + at * HEAD_DIM + d), sum);
            if (d == 0) __stcg(states + at, make_float2(top, total));
        }
    }
    if (share.parts == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 *counter = arrived + row * gridDim.y + kv_head;
        last = atomicAdd(counter, 1) == share.parts - 1;
        if (last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    for (int i = threadIdx.x * 4; i < group * HEAD_DIM; i += THREADS * 4) {
        const int g = i / HEAD_DIM, d = i % HEAD_DIM;
        const long long at = ((long long)row * heads + head0 + g) * splits;
        float top = -INFINITE, total = 0.0f;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        // Four parts at a time, so that their loads are under way together.
        for (int first = 0; first < share.parts; first += 4) {
            float2 states_of[4];
            float4 sums_of[4];
#pragma unroll
            for (int s = 0; s < 4; s++) {
                const long long part = at + min(first + s, share.parts - 1);
                states_of[s] = __ldcg(states + part);
                sums_of[s] = __ldcg((const float4 *)(partial + part * HEAD_DIM + d));
            }
            const float old = top;
#pragma unroll
            for (int s = 0; s < 4; s++) top = fmaxf(top, states_of[s].x);
            const float shrink = exp2_fast(old - top);
            total *= shrink;
            sum.x *= shrink, sum.y *= shrink, sum.z *= shrink, sum.w *= shrink;
#pragma unroll
            for (int s = 0; s < 4; s++) {
                const float weight = first + s < share.parts ? exp2_fast(states_of[s].x - top) : 0.0f;
                total = fmaf(weight, states_of[s].y, total);
                add_scaled(sum, weight, sums_of[s]);
            }
        }
        store_four(out + i, sum, 1.0f / total);
    }
}

#if BF16

// Pieces of keys and of values that a warp has room for.
#ifndef STAGES
#define STAGES 2
#endif

// A piece of keys or values for one warp; zeros after `valid` rows.
__device__ __forceinline__ void load_piece(number *to, const number *from, int valid, int lane, u64 once) {
#pragma unroll
    for (int i = lane; i < PIECE * PIECES; i += 32) {
        const int row = i / PIECES, piece = i % PIECES;
        const bool inside = row < valid;
        copy_16(shared_address(to + row * ROW + piece * 8), from + (inside ? row : 0) * HEAD_DIM + piece * 8, inside, once);
    }
}

// What a decoding step makes keys, values and queries from: projections [rows, ...] before norm and rotation.
struct Fresh {
    const number *k, *v;
    const float *q_weight, *k_weight, *cos, *sin;
    int k_stride, v_stride;
    float eps;
};

// The norms' weights that a thread needs.
struct Scales {
    Fours q, k;
};

__device__ __forceinline__ Scales scales_of(const Fresh &fresh) {
    const int lane = threadIdx.x % LANES, at = lane * 4;
    const bool used = lane < USED;
    return {load_fours(fresh.q_weight, at, used), load_fours(fresh.k_weight, at, used)};
}

// Norms and turns the queries of a block into `queries` and, where `position` is not negative, the key; that and the value
// go to `position` of `keys` and `values`.
__device__ __forceinline__ void norm_heads(
    number *queries, number *keys, number *values, const number *q, const Fresh &fresh, int row, int kv_head, int group,
    int position, const Scales &scales
) {
    const int lane = threadIdx.x % LANES, at = lane * 4;
    const bool used = lane < USED;
    const Fours angles = angles_of(fresh.cos, fresh.sin, row, at, used);
    for (int base = 0; base < group + 2; base += AT_ONCE) {
        const int head = base + threadIdx.x / LANES;
        const bool is_q = head < group, is_k = head == group;
        const bool active = used && (is_q || (head < group + 2 && position >= 0));
        const number *from = is_q ? q + head * HEAD_DIM
                             : is_k ? fresh.k + (long long)row * fresh.k_stride + kv_head * HEAD_DIM
                                    : fresh.v + (long long)row * fresh.v_stride + kv_head * HEAD_DIM;
        number *to = is_q ? queries + head * ROW : (is_k ? keys : values) + (long long)position * HEAD_DIM;
        const Fours x = load_fours(from, at, active);
        const Fours y = norm_rotate(x, either(is_q, scales.q, scales.k), angles, fresh.eps);
        if (active) store_fours(to, at, either(is_q || is_k, y, x));
    }
}

// FRESH: queries are made here, and the row's own key and value are stored before they are read.
template <bool FRESH>
__device__ __forceinline__ void attend(
    number *__restrict__ out, float *__restrict__ partial, u32 *__restrict__ arrived, const number *__restrict__ q,
    number *keys, number *values, const u32 *__restrict__ slots, const u32 *__restrict__ lengths, int out_stride,
    int q_stride, int capacity, int group, float scale, const Fresh &fresh
) {
    extern __shared__ __align__(16) number shared[];
    const int row = blockIdx.z, kv_head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // Lists are there before any kernel of a step begins, and so is what earlier steps stored.
    if (!FRESH) wait_for_previous();
    const u32 slot = slots[row];
    const int wanted = lengths[row], length = min(wanted, capacity);
    const Share share = share_of(length);
    if ((int)blockIdx.x >= share.parts) return;
    number *queries = shared, *ring = shared + MOST_HEADS * ROW + warp * STAGES * 2 * PIECE * ROW;
    const long long place = share.end > share.start ? ((long long)slot * gridDim.y + kv_head) * capacity : 0;
    keys += place * HEAD_DIM;
    values += place * HEAD_DIM;
    q += (long long)row * q_stride + kv_head * group * HEAD_DIM;

    const int start = share.start + warp * PIECE;
    const u64 once = read_once();
    const auto fetch = [&](int round) {
        const int key0 = start + round * CHUNK;
        if (key0 < share.end) {
            number *to = ring + round % STAGES * 2 * PIECE * ROW;
            load_piece(to, keys + (long long)key0 * HEAD_DIM, share.end - key0, lane, once);
            load_piece(to + PIECE * ROW, values + (long long)key0 * HEAD_DIM, share.end - key0, lane, once);
        }
        copies_done_so_far();
    };
    clear_rest<THREADS>(shared, MOST_HEADS + WARPS * STAGES * 2 * PIECE);
    int fetched = 0;
    if (FRESH) {
        const int old = min(share.end, length - 1);
        while (fetched < STAGES && min(start + fetched * CHUNK + PIECE, share.end) <= old) fetch(fetched++);
        // Weights, too, are there before.
        const Scales scales = scales_of(fresh);
        wait_for_previous();
        const bool last = share.end == wanted && share.end > share.start;
        norm_heads(queries, keys, values, q, fresh, row, kv_head, group, last ? length - 1 : -1, scales);
    }
    for (int i = threadIdx.x; i < MOST_HEADS * PIECES; i += THREADS) {
        const int g = i / PIECES, piece = i % PIECES;
        uint4 *to = (uint4 *)(queries + g * ROW + piece * 8);
        if (g >= group) *to = make_uint4(0, 0, 0, 0);
        else if (!FRESH) *to = *(const uint4 *)(q + g * HEAD_DIM + piece * 8);
    }
    __syncthreads();
    // Not earlier: the next kernel's first loads would be in the way of the queries.
    let_next_start();
    while (fetched < STAGES) fetch(fetched++);
    u32 a[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) load_left(a[step], queries + step * 16, lane);

    const float factor = scale * LOG2_E;
    float sums[WIDE / 8][4], highest[2] = {-INFINITE, -INFINITE}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < WIDE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;

    for (int round = 0; start + round * CHUNK < share.end; round++) {
        wait_copies<STAGES - 1>();
        __syncwarp();
        const int key0 = start + round * CHUNK;
        const number *key_tile = ring + round % STAGES * 2 * PIECE * ROW, *value_tile = key_tile + PIECE * ROW;
        float p[2][4];
#pragma unroll
        for (int e = 0; e < 4; e++) p[0][e] = p[1][e] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 b[4];
            load_right_by_rows(b, key_tile + step * 16, lane);
            multiply(p[0], a[step], b[0], b[1]);
            multiply(p[1], a[step], b[2], b[3]);
        }
        if (key0 + PIECE > share.end) {
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (key0 + n * 8 + (lane & 3) * 2 + (e & 1) >= share.end) p[n][e] = -INFINITE;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = fmaxf(fmaxf(p[0][2 * half], p[0][2 * half + 1]), fmaxf(p[1][2 * half], p[1][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(highest[half], fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * factor);
            const float shrink = exp2_fast(highest[half] - top);
            highest[half] = top;
            total[half] *= shrink;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    p[n][e] = exp2_fast(fmaf(p[n][e], factor, -top));
                    total[half] += p[n][e];
                }
#pragma unroll
            for (int n = 0; n < WIDE / 8; n++) sums[n][2 * half] *= shrink, sums[n][2 * half + 1] *= shrink;
        }
        u32 weights[4];
        as_left(weights, p[0], p[1]);
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            u32 b[4];
            load_right_by_columns(b, value_tile + n * 16, lane);
            multiply(sums[2 * n], weights, b[0], b[1]);
            multiply(sums[2 * n + 1], weights, b[2], b[3]);
        }
        __syncwarp();
        fetch(round + STAGES);
    }
    wait_copies<0>();
    __syncthreads();

    // Not a place of its own: then two blocks would not leave enough room for the next kernel beside them.
    float *found = (float *)shared;
    float2(*state)[MOST_HEADS] = (float2(*)[MOST_HEADS])(found + WARPS * MOST_HEADS * HEAD_DIM);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int g = (lane >> 2) + half * 8;
        if ((lane & 3) == 0) state[warp][g] = make_float2(highest[half], sum);
        if (g < group) {
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++)
                *(float2 *)(found + (warp * MOST_HEADS + g) * HEAD_DIM + n * 8 + (lane & 3) * 2) =
                    make_float2(sums[n][2 * half], sums[n][2 * half + 1]);
        }
    }
    join(out, partial, arrived, found, state, share, group, out_stride);
}

// `out[i]` = attention of row i to the positions 0..lengths[i] of slot slots[i], its own key among them. A length of 0
// gives zeros and reads nothing.
//
// Grid (splits, kv_heads, rows): the positions of a row are divided among at most `splits` blocks. Block 128 threads.
// `partial`: f32 [rows * heads * splits * (HEAD_DIM + 2)], needs no values. `arrived`: u32 [rows * kv_heads], zero
// before the first call, and again after every call. At most 16 query heads a key-value head. Shared memory: bf16 (32 +
// 256 * STAGES) * ROW bytes.
extern "C" __global__ void __launch_bounds__(THREADS) attention_decode(
    number *__restrict__ out, float *__restrict__ partial, u32 *__restrict__ arrived, const number *__restrict__ q,
    number *keys, number *values, const u32 *__restrict__ slots, const u32 *__restrict__ lengths, int out_stride,
    int q_stride, int capacity, int group, float scale
) {
    attend<false>(out, partial, arrived, q, keys, values, slots, lengths, out_stride, q_stride, capacity, group, scale, {});
}

// The same for a decoding step, from projections: `q` is normed and turned on its way, and so is `k`, which with `v`
// goes to position lengths[i] - 1 of its slot first; where that is not below `capacity` it goes nowhere.
extern "C" __global__ void __launch_bounds__(THREADS) attention_decode_fresh(
    number *__restrict__ out, float *__restrict__ partial, u32 *__restrict__ arrived, const number *__restrict__ q,
    number *keys, number *values, const u32 *__restrict__ slots, const u32 *__restrict__ lengths, int out_stride,
    int q_stride, int capacity, int group, float scale, const number *__restrict__ k, const number *__restrict__ v,
    const float *__restrict__ q_weight, const float *__restrict__ k_weight, const float *__restrict__ cos,
    const float *__restrict__ sin, int k_stride, int v_stride, float eps
) {
    attend<true>(
        out, partial, arrived, q, keys, values, slots, lengths, out_stride, q_stride, capacity, group, scale,
        {k, v, q_weight, k_weight, cos, sin, k_stride, v_stride, eps}
    );
}

// Row i of `k` and `v` ([rows, kv_heads * HEAD_DIM]) goes to slots[i] at positions[i]; rows whose position is not below
// `capacity` go nowhere. Grid (rows), block 128 threads.
extern "C" __global__ void __launch_bounds__(THREADS) attention_store(
    number *__restrict__ keys, number *__restrict__ values, const number *__restrict__ k, const number *__restrict__ v,
    const u32 *__restrict__ slots, const u32 *__restrict__ positions, int k_stride, int v_stride, int capacity,
    int kv_heads
) {
    const long long row = blockIdx.x, slot = slots[row], position = positions[row];
    if (position >= capacity) return;
    for (int i = threadIdx.x; i < kv_heads * PIECES; i += THREADS) {
        const int head = i / PIECES, at = i % PIECES * 8;
        const long long to = ((slot * kv_heads + head) * capacity + position) * HEAD_DIM + at;
        *(uint4 *)(keys + to) = *(const uint4 *)(k + row * k_stride + head * HEAD_DIM + at);
        *(uint4 *)(values + to) = *(const uint4 *)(v + row * v_stride + head * HEAD_DIM + at);
    }
}

#else

// Numbers of a head that a lane holds.
#define HELD ((HEAD_DIM + 31) / 32)

// As in bf16. A warp takes one key at a time. Shared memory: 4 * 64 * HEAD_DIM bytes.
extern "C" __global__ void __launch_bounds__(THREADS) attention_decode(
    float *__restrict__ out, float *__restrict__ partial, u32 *__restrict__ arrived, const float *__restrict__ q,
    const float *__restrict__ keys, const float *__restrict__ values, const u32 *__restrict__ slots,
    const u32 *__restrict__ lengths, int out_stride, int q_stride, int capacity, int group, float scale
) {
    extern __shared__ __align__(16) float found[];
    __shared__ float2 state[WARPS][MOST_HEADS];
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.z, kv_head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Share share = share_of(min((int)lengths[row], capacity));
    if ((int)blockIdx.x >= share.parts) return;
    const long long place = share.end > share.start ? ((long long)slots[row] * gridDim.y + kv_head) * capacity : 0;
    keys += place * HEAD_DIM;
    values += place * HEAD_DIM;
    for (int g = 0; g < group; g++) {
        const float *query = q + (long long)row * q_stride + (kv_head * group + g) * HEAD_DIM;
        float x[HELD], sums[HELD], highest = -INFINITE, total = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int d = lane + 32 * i;
            x[i] = d < HEAD_DIM ? query[d] * scale * LOG2_E : 0.0f;
            sums[i] = 0.0f;
        }
        for (int key = share.start + warp; key < share.end; key += WARPS) {
            float score = 0.0f;
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int d = lane + 32 * i;
                if (d < HEAD_DIM) score = fmaf(x[i], keys[(long long)key * HEAD_DIM + d], score);
            }
            for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(~0u, score, step);
            const float top = fmaxf(highest, score), shrink = exp2f(highest - top), p = exp2f(score - top);
            highest = top;
            total = fmaf(total, shrink, p);
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int d = lane + 32 * i;
                if (d < HEAD_DIM) sums[i] = fmaf(p, values[(long long)key * HEAD_DIM + d], sums[i] * shrink);
            }
        }
        if (lane == 0) state[warp][g] = make_float2(highest, total);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int d = lane + 32 * i;
            if (d < HEAD_DIM) found[(warp * MOST_HEADS + g) * HEAD_DIM + d] = sums[i];
        }
    }
    join(out, partial, arrived, found, state, share, group, out_stride);
}

// As in bf16.
extern "C" __global__ void __launch_bounds__(THREADS) attention_store(
    float *__restrict__ keys, float *__restrict__ values, const float *__restrict__ k, const float *__restrict__ v,
    const u32 *__restrict__ slots, const u32 *__restrict__ positions, int k_stride, int v_stride, int capacity,
    int kv_heads
) {
    const long long row = blockIdx.x, slot = slots[row], position = positions[row];
    if (position >= capacity) return;
    for (int i = threadIdx.x; i < kv_heads * HEAD_DIM; i += THREADS) {
        const int head = i / HEAD_DIM, at = i % HEAD_DIM;
        const long long to = ((slot * kv_heads + head) * capacity + position) * HEAD_DIM + at;
        keys[to] = k[row * k_stride + i];
        values[to] = v[row * v_stride + i];
    }
}

#endif
