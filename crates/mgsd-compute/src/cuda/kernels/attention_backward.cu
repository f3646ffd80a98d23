// Gradients of attention over packed sequences. The weights are made again from the scores and `log_sum_exp`:
// p = exp(scale q·k - lse), ds = p (dout·v - delta), dq = scale Σ ds k, dk = scale Σ ds q, dv = Σ p dout, with
// delta = dout·out from attention_delta.cu.
//
// One kernel owns rows of keys and walks over the queries of all heads that see them, another owns rows of queries and
// walks over the keys: nothing is added to by two blocks, so the bits of the result are the same at every run.

#if BF16

#define THREADS 256
// Rows of the side that is walked over, at a time, a multiple of 16; 16 where a block has less than 100 KiB of shared
// memory.
#ifndef WALK
#define WALK 64
#endif

// Overwrites the rows of `dk` and `dv` that the tiles cover. Grid (kv_heads, tiles), block 256 threads; the tiles are
// rows of keys. Shared memory: (512 + 8 * WALK) * ROW + 16 * WALK bytes.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_keys(
    number *__restrict__ dk, number *__restrict__ dv, const number *__restrict__ dout, const number *__restrict__ q,
    const number *__restrict__ k, const number *__restrict__ v, const float *__restrict__ log_sum_exp,
    const float *__restrict__ delta, const int4 *__restrict__ tiles, int dk_stride, int dv_stride, int dout_stride,
    int q_stride, int k_stride, int v_stride, int group, float scale
) {
    extern __shared__ __align__(16) number shared[];
    number *keys = shared, *values = keys + TILE * ROW;
    number *queries = values + TILE * ROW, *douts = queries + 2 * WALK * ROW;
    // [2][WALK] each.
    float *lse = (float *)(douts + 2 * WALK * ROW), *deltas = lse + 2 * WALK;

    const int4 tile = tiles[blockIdx.y];
    const int kv_head = blockIdx.x, heads = gridDim.x * group;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int length = tile.y - tile.x, first = tile.z - tile.x, row0 = first + warp * 16;
    const int from = CAUSAL ? first : 0, steps = (length - from + WALK - 1) / WALK, rounds = steps * group;

    const auto fetch = [&](int round) {
        const int head = kv_head * group + round / steps, query0 = from + round % steps * WALK, stage = round & 1;
        const long long row = tile.x + query0;
        load_tile<WALK, THREADS>(
            queries + stage * WALK * ROW, q + row * q_stride + head * HEAD_DIM, q_stride, length - query0);
        load_tile<WALK, THREADS>(
            douts + stage * WALK * ROW, dout + row * dout_stride + head * HEAD_DIM, dout_stride, length - query0);
        if (threadIdx.x < 2 * WALK) {
            const int i = threadIdx.x % WALK;
            const bool inside = query0 + i < length;
            const float *source = (threadIdx.x < WALK ? log_sum_exp : delta) + (inside ? row + i : row) * heads + head;
            const u32 to = shared_address((threadIdx.x < WALK ? lse : deltas) + stage * WALK + i);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(source), "r"(inside ? 4 : 0)
                         : "memory");
        }
        copies_done_so_far();
    };
    clear_rest<THREADS>(shared, 2 * TILE + 4 * WALK);
    load_tile<TILE, THREADS>(keys, k + (long long)tile.z * k_stride + kv_head * HEAD_DIM, k_stride, length - first);
    load_tile<TILE, THREADS>(values, v + (long long)tile.z * v_stride + kv_head * HEAD_DIM, v_stride, length - first);
    fetch(0);

    const float factor = scale * LOG2_E;
    const number *own_keys = keys + warp * 16 * ROW, *own_values = values + warp * 16 * ROW;
    float dk_sums[WIDE / 8][4], dv_sums[WIDE / 8][4];
#pragma unroll
    for (int n = 0; n < WIDE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) dk_sums[n][e] = dv_sums[n][e] = 0.0f;

    for (int round = 0; round < rounds; round++) {
        wait_copies<0>();
        __syncthreads();
        if (round + 1 < rounds) fetch(round + 1);
        const int query0 = from + round % steps * WALK;
        if (row0 >= length || (CAUSAL && query0 + WALK <= row0)) continue;
        const int stage = round & 1;
        const number *query_tile = queries + stage * WALK * ROW, *dout_tile = douts + stage * WALK * ROW;

        // Transposed: keys are rows, queries columns, so that both are the left operand of the sums below as they are.
        float p[WALK / 8][4], ds[WALK / 8][4];
#pragma unroll
        for (int n = 0; n < WALK / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) p[n][e] = ds[n][e] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 a[4], c[4];
            load_left(a, own_keys + step * 16, lane);
            load_left(c, own_values + step * 16, lane);
#pragma unroll
            for (int n = 0; n < WALK / 16; n++) {
                u32 b[4];
                load_right_by_rows(b, query_tile + n * 16 * ROW + step * 16, lane);
                multiply(p[2 * n], a, b[0], b[1]);
                multiply(p[2 * n + 1], a, b[2], b[3]);
                load_right_by_rows(b, dout_tile + n * 16 * ROW + step * 16, lane);
                multiply(ds[2 * n], c, b[0], b[1]);
                multiply(ds[2 * n + 1], c, b[2], b[3]);
            }
        }
        const bool edge = CAUSAL && query0 < row0 + 15;
#pragma unroll
        for (int n = 0; n < WALK / 8; n++) {
            const int column = n * 8 + (lane & 3) * 2;
            const float2 shift = *(const float2 *)(lse + stage * WALK + column);
            const float2 less = *(const float2 *)(deltas + stage * WALK + column);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float weight = exp2_fast(fmaf(p[n][e], factor, -LOG2_E * (e & 1 ? shift.y : shift.x)));
                if (edge && query0 + column + (e & 1) < row0 + (lane >> 2) + (e >> 1) * 8) weight = 0.0f;
                p[n][e] = weight;
                ds[n][e] = weight * (ds[n][e] - (e & 1 ? less.y : less.x));
            }
        }
#pragma unroll
        for (int step = 0; step < WALK / 16; step++) {
            u32 a[4], c[4];
            as_left(a, p[2 * step], p[2 * step + 1]);
            as_left(c, ds[2 * step], ds[2 * step + 1]);
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                u32 b[4];
                load_right_by_columns(b, dout_tile + step * 16 * ROW + n * 16, lane);
                multiply(dv_sums[2 * n], a, b[0], b[1]);
                multiply(dv_sums[2 * n + 1], a, b[2], b[3]);
                load_right_by_columns(b, query_tile + step * 16 * ROW + n * 16, lane);
                multiply(dk_sums[2 * n], c, b[0], b[1]);
                multiply(dk_sums[2 * n + 1], c, b[2], b[3]);
            }
        }
    }
    const long long row = tile.x + row0;
    store_rows(dk + row * dk_stride + kv_head * HEAD_DIM, dk_stride, length - row0, keys + warp * 16 * ROW, dk_sums,
               scale, scale, lane);
    store_rows(dv + row * dv_stride + kv_head * HEAD_DIM, dv_stride, length - row0, values + warp * 16 * ROW, dv_sums,
               1.0f, 1.0f, lane);
}

// Overwrites the rows of `dq` that the tiles cover. Grid (heads, tiles), block 256 threads; the tiles are rows of
// queries. Shared memory: (512 + 8 * WALK) * ROW bytes.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_queries(
    number *__restrict__ dq, const number *__restrict__ dout, const number *__restrict__ q,
    const number *__restrict__ k, const number *__restrict__ v, const float *__restrict__ log_sum_exp,
    const float *__restrict__ delta, const int4 *__restrict__ tiles, int dq_stride, int dout_stride, int q_stride,
    int k_stride, int v_stride, int group, float scale
) {
    extern __shared__ __align__(16) number shared[];
    number *queries = shared, *douts = queries + TILE * ROW;
    number *keys = douts + TILE * ROW, *values = keys + 2 * WALK * ROW;

    const int4 tile = tiles[blockIdx.y];
    const int head = blockIdx.x, heads = gridDim.x, kv_head = head / group;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int length = tile.y - tile.x, first = tile.z - tile.x, row0 = first + warp * 16;
    const int seen = CAUSAL ? min(first + TILE, length) : length, rounds = (seen + WALK - 1) / WALK;
    k += (long long)tile.x * k_stride + kv_head * HEAD_DIM;
    v += (long long)tile.x * v_stride + kv_head * HEAD_DIM;

    const auto fetch = [&](int round) {
        const int key0 = round * WALK, stage = round & 1;
        load_tile<WALK, THREADS>(keys + stage * WALK * ROW, k + (long long)key0 * k_stride, k_stride, length - key0);
        load_tile<WALK, THREADS>(values + stage * WALK * ROW, v + (long long)key0 * v_stride, v_stride, length - key0);
        copies_done_so_far();
    };
    clear_rest<THREADS>(shared, 2 * TILE + 4 * WALK);
    load_tile<TILE, THREADS>(queries, q + (long long)tile.z * q_stride + head * HEAD_DIM, q_stride, length - first);
    load_tile<TILE, THREADS>(
        douts, dout + (long long)tile.z * dout_stride + head * HEAD_DIM, dout_stride, length - first);
    fetch(0);

    float shift[2], less[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = row0 + half * 8 + (lane >> 2);
        const long long at = (long long)(tile.x + query) * heads + head;
        shift[half] = query < length ? LOG2_E * log_sum_exp[at] : 0.0f;
        less[half] = query < length ? delta[at] : 0.0f;
    }
    const float factor = scale * LOG2_E;
    const number *own_queries = queries + warp * 16 * ROW, *own_douts = douts + warp * 16 * ROW;
    float sums[WIDE / 8][4];
#pragma unroll
    for (int n = 0; n < WIDE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;

    for (int round = 0; round < rounds; round++) {
        wait_copies<0>();
        __syncthreads();
        if (round + 1 < rounds) fetch(round + 1);
        const int key0 = round * WALK;
        if (row0 >= length || (CAUSAL && key0 >= row0 + 16)) continue;
        const number *key_tile = keys + (round & 1) * WALK * ROW, *value_tile = values + (round & 1) * WALK * ROW;

        float p[WALK / 8][4], ds[WALK / 8][4];
#pragma unroll
        for (int n = 0; n < WALK / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) p[n][e] = ds[n][e] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 a[4], c[4];
            load_left(a, own_queries + step * 16, lane);
            load_left(c, own_douts + step * 16, lane);
#pragma unroll
            for (int n = 0; n < WALK / 16; n++) {
                u32 b[4];
                load_right_by_rows(b, key_tile + n * 16 * ROW + step * 16, lane);
                multiply(p[2 * n], a, b[0], b[1]);
                multiply(p[2 * n + 1], a, b[2], b[3]);
                load_right_by_rows(b, value_tile + n * 16 * ROW + step * 16, lane);
                multiply(ds[2 * n], c, b[0], b[1]);
                multiply(ds[2 * n + 1], c, b[2], b[3]);
            }
        }
        const bool edge = key0 + WALK > length || (CAUSAL && key0 + WALK > row0 + 1);
#pragma unroll
        for (int n = 0; n < WALK / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int key = key0 + n * 8 + (lane & 3) * 2 + (e & 1), query = row0 + (lane >> 2) + (e >> 1) * 8;
                float weight = exp2_fast(fmaf(p[n][e], factor, -shift[e >> 1]));
                if (edge && (key >= length || (CAUSAL && key > query))) weight = 0.0f;
                ds[n][e] = weight * (ds[n][e] - less[e >> 1]);
            }
#pragma unroll
        for (int step = 0; step < WALK / 16; step++) {
            u32 a[4];
            as_left(a, ds[2 * step], ds[2 * step + 1]);
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                u32 b[4];
                load_right_by_columns(b, key_tile + step * 16 * ROW + n * 16, lane);
                multiply(sums[2 * n], a, b[0], b[1]);
                multiply(sums[2 * n + 1], a, b[2], b[3]);
            }
        }
    }
    number *to = dq + (long long)(tile.x + row0) * dq_stride + head * HEAD_DIM;
    store_rows(to, dq_stride, length - row0, queries + warp * 16 * ROW, sums, scale, scale, lane);
}

#else

#define THREADS 128

// Every fourth product of a row of `x` and of `y` with the rows of two tiles.
__device__ __forceinline__ void products(
    float (&xs)[TILE / 4], float (&ys)[TILE / 4], const float *x, const float *y, const float *x_tile,
    const float *y_tile, int part
) {
#pragma unroll
    for (int i = 0; i < TILE / 4; i++) xs[i] = ys[i] = 0.0f;
    for (int d = 0; d < HEAD_DIM; d += 2) {
        const float2 a = *(const float2 *)(x + d), b = *(const float2 *)(y + d);
#pragma unroll
        for (int i = 0; i < TILE / 4; i++) {
            const float2 c = *(const float2 *)(x_tile + (part + 4 * i) * ROW + d);
            const float2 e = *(const float2 *)(y_tile + (part + 4 * i) * ROW + d);
            xs[i] = fmaf(a.x, c.x, fmaf(a.y, c.y, xs[i]));
            ys[i] = fmaf(b.x, e.x, fmaf(b.y, e.y, ys[i]));
        }
    }
}

// sums += one row of weights times a tile, for every fourth pair of columns.
__device__ __forceinline__ void add_rows(float2 (&sums)[HEAD_DIM / 8], const float *weights, const float *tile, int part) {
    for (int j = 0; j < TILE; j++) {
        const float weight = weights[j];
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 8; i++) {
            const float2 y = *(const float2 *)(tile + j * ROW + part * 2 + i * 8);
            sums[i].x = fmaf(weight, y.x, sums[i].x);
            sums[i].y = fmaf(weight, y.y, sums[i].y);
        }
    }
}

__device__ __forceinline__ void store_row(float *to, const float2 (&sums)[HEAD_DIM / 8], float factor, int part) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) {
        to[part * 2 + i * 8] = sums[i].x * factor;
        to[part * 2 + i * 8 + 1] = sums[i].y * factor;
    }
}

// Grid (kv_heads, tiles), block 128 threads, four a key. Shared memory: 4 * (128 * ROW + 2 * 32 * 33) bytes.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys(
    float *__restrict__ dk, float *__restrict__ dv, const float *__restrict__ dout, const float *__restrict__ q,
    const float *__restrict__ k, const float *__restrict__ v, const float *__restrict__ log_sum_exp,
    const float *__restrict__ delta, const int4 *__restrict__ tiles, int dk_stride, int dv_stride, int dout_stride,
    int q_stride, int k_stride, int v_stride, int group, float scale
) {
    extern __shared__ __align__(16) float shared[];
    float *keys = shared, *values = keys + TILE * ROW, *queries = values + TILE * ROW, *douts = queries + TILE * ROW;
    float *weights = douts + TILE * ROW, *slopes = weights + TILE * 33;

    const int4 tile = tiles[blockIdx.y];
    const int kv_head = blockIdx.x, heads = gridDim.x * group;
    const int row = threadIdx.x / 4, part = threadIdx.x % 4;
    const int length = tile.y - tile.x, first = tile.z - tile.x, key = first + row;
    load_tile<THREADS>(keys, k + (long long)tile.z * k_stride + kv_head * HEAD_DIM, k_stride, length - first);
    load_tile<THREADS>(values, v + (long long)tile.z * v_stride + kv_head * HEAD_DIM, v_stride, length - first);
    float2 dk_sums[HEAD_DIM / 8], dv_sums[HEAD_DIM / 8];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) dk_sums[i] = dv_sums[i] = make_float2(0.0f, 0.0f);

    for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int query0 = CAUSAL ? first : 0; query0 < length; query0 += TILE) {
            const long long at = tile.x + query0;
            __syncthreads();
            load_tile<THREADS>(queries, q + at * q_stride + head * HEAD_DIM, q_stride, length - query0);
            load_tile<THREADS>(douts, dout + at * dout_stride + head * HEAD_DIM, dout_stride, length - query0);
            __syncthreads();
            float p[TILE / 4], ds[TILE / 4];
            products(p, ds, keys + row * ROW, values + row * ROW, queries, douts, part);
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) {
                const int query = query0 + part + 4 * i;
                const bool sees = query < length && !(CAUSAL && key > query);
                const long long place = (tile.x + (sees ? query : query0)) * (long long)heads + head;
                const float weight = sees ? expf(p[i] * scale - log_sum_exp[place]) : 0.0f;
                weights[row * 33 + part + 4 * i] = weight;
                slopes[row * 33 + part + 4 * i] = sees ? weight * (ds[i] - delta[place]) : 0.0f;
            }
            __syncwarp();
            add_rows(dv_sums, weights + row * 33, douts, part);
            add_rows(dk_sums, slopes + row * 33, queries, part);
        }
    if (key < length) {
        const long long at = tile.x + key;
        store_row(dk + at * dk_stride + kv_head * HEAD_DIM, dk_sums, scale, part);
        store_row(dv + at * dv_stride + kv_head * HEAD_DIM, dv_sums, 1.0f, part);
    }
}

// Grid (heads, tiles), block 128 threads, four a query. Shared memory: 4 * (128 * ROW + 32 * 33) bytes.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries(
    float *__restrict__ dq, const float *__restrict__ dout, const float *__restrict__ q, const float *__restrict__ k,
    const float *__restrict__ v, const float *__restrict__ log_sum_exp, const float *__restrict__ delta,
    const int4 *__restrict__ tiles, int dq_stride, int dout_stride, int q_stride, int k_stride, int v_stride, int group,
    float scale
) {
    extern __shared__ __align__(16) float shared[];
    float *queries = shared, *douts = queries + TILE * ROW, *keys = douts + TILE * ROW, *values = keys + TILE * ROW;
    float *slopes = values + TILE * ROW;

    const int4 tile = tiles[blockIdx.y];
    const int head = blockIdx.x, heads = gridDim.x, kv_head = head / group;
    const int row = threadIdx.x / 4, part = threadIdx.x % 4;
    const int length = tile.y - tile.x, first = tile.z - tile.x, query = first + row;
    const int seen = CAUSAL ? min(first + TILE, length) : length;
    k += (long long)tile.x * k_stride + kv_head * HEAD_DIM;
    v += (long long)tile.x * v_stride + kv_head * HEAD_DIM;
    load_tile<THREADS>(queries, q + (long long)tile.z * q_stride + head * HEAD_DIM, q_stride, length - first);
    load_tile<THREADS>(douts, dout + (long long)tile.z * dout_stride + head * HEAD_DIM, dout_stride, length - first);
    const long long place = (tile.x + (query < length ? query : first)) * (long long)heads + head;
    const float shift = log_sum_exp[place], less = delta[place];
    float2 sums[HEAD_DIM / 8];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) sums[i] = make_float2(0.0f, 0.0f);

    for (int key0 = 0; key0 < seen; key0 += TILE) {
        __syncthreads();
        load_tile<THREADS>(keys, k + (long long)key0 * k_stride, k_stride, length - key0);
        load_tile<THREADS>(values, v + (long long)key0 * v_stride, v_stride, length - key0);
        __syncthreads();
        float p[TILE / 4], ds[TILE / 4];
        products(p, ds, queries + row * ROW, douts + row * ROW, keys, values, part);
#pragma unroll
        for (int i = 0; i < TILE / 4; i++) {
            const int key = key0 + part + 4 * i;
            const bool sees = key < length && !(CAUSAL && key > query);
            slopes[row * 33 + part + 4 * i] = sees ? expf(p[i] * scale - shift) * (ds[i] - less) : 0.0f;
        }
        __syncwarp();
        add_rows(sums, slopes + row * 33, keys, part);
    }
    if (query < length) store_row(dq + (long long)(tile.x + query) * dq_stride + head * HEAD_DIM, sums, scale, part);
}

#endif
