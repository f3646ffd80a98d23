// Attention over packed sequences: `out` and its softmax's `log_sum_exp` (f32, [rows, heads]); Dao, arXiv 2307.08691.
//
// Grid (heads, tiles), one query head of one tile each. Block 128 threads.
// Shared memory: bf16 (256 + 8 * KEYS) * ROW bytes (a tile of queries, two of KEYS keys and two of as many values);
// f32 4 * (96 * ROW + 32 * 33) bytes.

#if BF16

// Keys at a time, a multiple of 16; 32 where a block has less than 100 KiB of shared memory.
#ifndef KEYS
#define KEYS 64
#endif
// Blocks of 16 query rows in a warp.
#define BLOCKS 2
#define THREADS 128

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward(
    number *__restrict__ out, float *__restrict__ log_sum_exp, const number *__restrict__ q,
    const number *__restrict__ k, const number *__restrict__ v, const int4 *__restrict__ tiles, int out_stride,
    int q_stride, int k_stride, int v_stride, int group, float scale
) {
    extern __shared__ __align__(16) number shared[];
    number *queries = shared;
    number *keys = queries + TILE * ROW;
    number *values = keys + 2 * KEYS * ROW;

    const int4 tile = tiles[blockIdx.y];
    const int head = blockIdx.x, heads = gridDim.x, kv_head = head / group;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int length = tile.y - tile.x, first = tile.z - tile.x;
    const int seen = CAUSAL ? min(first + TILE, length) : length;
    const int rounds = (seen + KEYS - 1) / KEYS;
    k += (long long)tile.x * k_stride + kv_head * HEAD_DIM;
    v += (long long)tile.x * v_stride + kv_head * HEAD_DIM;

    clear_rest<THREADS>(shared, TILE + 4 * KEYS);
    load_tile<TILE, THREADS>(queries, q + (long long)tile.z * q_stride + head * HEAD_DIM, q_stride, length - first);
    load_tile<KEYS, THREADS>(keys, k, k_stride, length);
    load_tile<KEYS, THREADS>(values, v, v_stride, length);
    copies_done_so_far();

    const int row0 = first + warp * 16 * BLOCKS;
    const float factor = scale * LOG2_E;
    number *own = queries + warp * 16 * BLOCKS * ROW;
    float sums[BLOCKS][WIDE / 8][4], highest[BLOCKS][2], total[BLOCKS][2];
#pragma unroll
    for (int m = 0; m < BLOCKS; m++) {
        highest[m][0] = highest[m][1] = -INFINITE;
        total[m][0] = total[m][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < WIDE / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[m][n][e] = 0.0f;
    }

    for (int round = 0; round < rounds; round++) {
        wait_copies<0>();
        __syncthreads();
        const int key0 = round * KEYS;
        if (round + 1 < rounds) {
            const int next = key0 + KEYS, other = ((round + 1) & 1) * KEYS * ROW;
            load_tile<KEYS, THREADS>(keys + other, k + (long long)next * k_stride, k_stride, length - next);
            load_tile<KEYS, THREADS>(values + other, v + (long long)next * v_stride, v_stride, length - next);
            copies_done_so_far();
        }
        if (row0 >= length || (CAUSAL && key0 >= row0 + 16 * BLOCKS)) continue;
        const number *key_tile = keys + (round & 1) * KEYS * ROW, *value_tile = values + (round & 1) * KEYS * ROW;

        float p[BLOCKS][KEYS / 8][4];
#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) p[m][n][e] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 a[BLOCKS][4];
#pragma unroll
            for (int m = 0; m < BLOCKS; m++) load_left(a[m], own + m * 16 * ROW + step * 16, lane);
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                u32 b[4];
                load_right_by_rows(b, key_tile + n * 16 * ROW + step * 16, lane);
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) {
                    multiply(p[m][2 * n], a[m], b[0], b[1]);
                    multiply(p[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }

        if (key0 + KEYS > length || (CAUSAL && key0 + KEYS > row0 + 1)) {
#pragma unroll
            for (int m = 0; m < BLOCKS; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int key = key0 + n * 8 + (lane & 3) * 2 + (e & 1);
                        const int query = row0 + m * 16 + (lane >> 2) + (e >> 1) * 8;
                        if (key >= length || (CAUSAL && key > query)) p[m][n][e] = -INFINITE;
                    }
        }

#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = highest[m][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(p[m][n][2 * half], p[m][n][2 * half + 1]));
                top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
                top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
                const float shrink = exp2_fast((highest[m][half] - top) * factor), shift = top * factor;
                highest[m][half] = top;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; e++) {
                        p[m][n][e] = exp2_fast(fmaf(p[m][n][e], factor, -shift));
                        sum += p[m][n][e];
                    }
                total[m][half] = fmaf(total[m][half], shrink, sum);
#pragma unroll
                for (int n = 0; n < WIDE / 8; n++) {
                    sums[m][n][2 * half] *= shrink;
                    sums[m][n][2 * half + 1] *= shrink;
                }
            }

#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            u32 a[BLOCKS][4];
#pragma unroll
            for (int m = 0; m < BLOCKS; m++) as_left(a[m], p[m][2 * step], p[m][2 * step + 1]);
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                u32 b[4];
                load_right_by_columns(b, value_tile + step * 16 * ROW + n * 16, lane);
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) {
                    multiply(sums[m][2 * n], a[m], b[0], b[1]);
                    multiply(sums[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

#pragma unroll
    for (int m = 0; m < BLOCKS; m++) {
        float inverse[2];
        const int row = row0 + m * 16;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = total[m][half];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            inverse[half] = 1.0f / sum;
            const int query = row + half * 8 + (lane >> 2);
            if ((lane & 3) == 0 && query < length)
                log_sum_exp[(long long)(tile.x + query) * heads + head] = highest[m][half] * scale + logf(sum);
        }
        number *to = out + (long long)(tile.x + row) * out_stride + head * HEAD_DIM;
        store_rows(to, out_stride, length - row, own + m * 16 * ROW, sums[m], inverse[0], inverse[1], lane);
    }
}

#else

#define THREADS 128

// Four threads a query: each makes every fourth score of a tile of keys and every fourth pair of columns of the result.
extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
    float *__restrict__ out, float *__restrict__ log_sum_exp, const float *__restrict__ q, const float *__restrict__ k,
    const float *__restrict__ v, const int4 *__restrict__ tiles, int out_stride, int q_stride, int k_stride,
    int v_stride, int group, float scale
) {
    extern __shared__ __align__(16) float shared[];
    float *queries = shared, *keys = queries + TILE * ROW, *values = keys + TILE * ROW, *weights = values + TILE * ROW;

    const int4 tile = tiles[blockIdx.y];
    const int head = blockIdx.x, heads = gridDim.x, kv_head = head / group;
    const int row = threadIdx.x / 4, part = threadIdx.x % 4;
    const int length = tile.y - tile.x, first = tile.z - tile.x, query = first + row;
    const int seen = CAUSAL ? min(first + TILE, length) : length;
    k += (long long)tile.x * k_stride + kv_head * HEAD_DIM;
    v += (long long)tile.x * v_stride + kv_head * HEAD_DIM;
    load_tile<THREADS>(queries, q + (long long)tile.z * q_stride + head * HEAD_DIM, q_stride, length - first);

    float2 sums[HEAD_DIM / 8];
    float highest = -INFINITE, total = 0.0f;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) sums[i] = make_float2(0.0f, 0.0f);

    for (int key0 = 0; key0 < seen; key0 += TILE) {
        __syncthreads();
        load_tile<THREADS>(keys, k + (long long)key0 * k_stride, k_stride, length - key0);
        load_tile<THREADS>(values, v + (long long)key0 * v_stride, v_stride, length - key0);
        __syncthreads();
        float p[TILE / 4];
#pragma unroll
        for (int i = 0; i < TILE / 4; i++) p[i] = 0.0f;
        for (int d = 0; d < HEAD_DIM; d += 2) {
            const float2 x = *(const float2 *)(queries + row * ROW + d);
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) {
                const float2 y = *(const float2 *)(keys + (part + 4 * i) * ROW + d);
                p[i] = fmaf(x.x, y.x, fmaf(x.y, y.y, p[i]));
            }
        }
        float top = highest;
#pragma unroll
        for (int i = 0; i < TILE / 4; i++) {
            const int key = key0 + part + 4 * i;
            p[i] = key >= length || (CAUSAL && key > query) ? -INFINITE : p[i] * scale;
            top = fmaxf(top, p[i]);
        }
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float shrink = expf(highest - top);
        highest = top;
        total *= shrink;
#pragma unroll
        for (int i = 0; i < TILE / 4; i++) {
            p[i] = expf(p[i] - top);
            total += p[i];
            weights[row * 33 + part + 4 * i] = p[i];
        }
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 8; i++) sums[i].x *= shrink, sums[i].y *= shrink;
        __syncwarp();
        for (int j = 0; j < TILE; j++) {
            const float weight = weights[row * 33 + j];
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 8; i++) {
                const float2 y = *(const float2 *)(values + j * ROW + part * 2 + i * 8);
                sums[i].x = fmaf(weight, y.x, sums[i].x);
                sums[i].y = fmaf(weight, y.y, sums[i].y);
            }
        }
    }
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (query < length) {
        const float inverse = 1.0f / total;
        float *to = out + (long long)(tile.x + query) * out_stride + head * HEAD_DIM + part * 2;
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 8; i++) to[i * 8] = sums[i].x * inverse, to[i * 8 + 1] = sums[i].y * inverse;
        if (part == 0) log_sum_exp[(long long)(tile.x + query) * heads + head] = highest + logf(total);
    }
}

#endif
