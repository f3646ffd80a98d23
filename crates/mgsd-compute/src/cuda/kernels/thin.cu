// The thin products of low-rank adapters: a matrix m [tokens, width] of bfloat16 is read once, for up to three adapters.
//
// Set when compiling:
//   SETS    adapters
//   RANK    of each, a multiple of 8; SETS * RANK is at most 24
//   ALONG   1: sums along the rows are wanted, m wᵀ for every w [RANK, width]
//   DOWN    1: sums down the columns are wanted, lᵀ m for every l [tokens, RANK]
//   TURNED  1: w is [width, RANK], and mᵀ l is wanted; SETS is 1
//
// A block has WIDE columns and a stretch of tokens, which come TALL at a time by `cp.async` into a ring; products by
// `mma.sync`. Its sums go to memory as 32-bit floats, and `sum` joins those of all blocks in their order, so that bits
// repeat. Compute capability 8.0.

#define THREADS 256
#define TALL 64
#define WIDE 256
// Numbers from row to row in shared memory: an odd number of 16-byte pieces, so that eight rows hit all banks.
#define ROW (WIDE + 8)
#define COLUMNS (SETS * RANK)
#define GROUPS (COLUMNS / 8)
#define STAGES 3
#define STAGE (TALL * ROW + DOWN * SETS * TALL * RANK)
// Steps along the rows that a warp makes: half of the columns.
#define STEPS (WIDE / 32)

template <class A> __device__ __forceinline__ A* one_of(int set, A* first, A* second, A* third) {
    return set == 0 ? first : set == 1 ? second : third;
}

// along: [gridDim.x, tokens, COLUMNS]; down: [gridDim.y, COLUMNS, width], TURNED [gridDim.y, width, RANK]. Grid: tiles of
// columns, stretches of tokens. Shared memory: the ring and, ALONG, TALL * COLUMNS floats.
extern "C" __global__ void __launch_bounds__(THREADS, 2) thin(
    float* along, float* down, const u16* m, const u16* w0, const u16* w1, const u16* w2, const u16* l0, const u16* l1,
    const u16* l2, int tokens, int width, int stretch) {
    extern __shared__ __align__(16) u16 ring[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int column0 = blockIdx.x * WIDE, first = blockIdx.y * stretch, last = min(tokens, first + stretch);

    const auto fetch = [&](int round) {
        const int row0 = first + round * TALL;
        if (row0 < last) {
            u16* to = ring + round % STAGES * STAGE;
#pragma unroll
            for (int i = threadIdx.x; i < TALL * WIDE / 8; i += THREADS) {
                const int row = i / (WIDE / 8), at = i % (WIDE / 8) * 8;
                const bool inside = row0 + row < last && column0 + at < width;
                const u16* from = inside ? m + (i64)(row0 + row) * width + column0 + at : m;
                copy_16(shared_address(to + row * ROW + at), from, inside);
            }
            if (DOWN) {
                for (int i = threadIdx.x; i < SETS * TALL * RANK / 8; i += THREADS) {
                    const int set = i / (TALL * RANK / 8), at = i % (TALL * RANK / 8) * 8;
                    const bool inside = row0 + at / RANK < last;
                    const u16* l = one_of(set, l0, l1, l2);
                    copy_16(shared_address(to + TALL * ROW + i * 8), inside ? l + (i64)row0 * RANK + at : l, inside);
                }
            }
        }
        copies_done_so_far();
    };
    for (int round = 0; round < STAGES - 1; round++) fetch(round);

    // Along the rows a warp has 16 tokens and half of the columns, whose weights it keeps.
    const int tall = warp % 4, half = warp / 4;
    u32 right[GROUPS][STEPS][2];
    if (ALONG) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int n = g * 8 % RANK + lane / 4;
            const u16* w = one_of(g * 8 / RANK, w0, w1, w2);
#pragma unroll
            for (int i = 0; i < STEPS * 2; i++) {
                const int column = column0 + half * (WIDE / 2) + i * 8 + lane % 4 * 2;
                u32 both = 0;
                if (column < width) {
                    if (TURNED) both = w[(i64)column * RANK + n] | (u32)w[(i64)(column + 1) * RANK + n] << 16;
                    else both = *(const u32*)(w + (i64)n * width + column);
                }
                right[g][i / 2][i % 2] = both;
            }
        }
    }
    // Down the columns a warp has 32 of them, twice 16.
    float sums[2][GROUPS][4];
#pragma unroll
    for (int part = 0; part < 2; part++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[part][g][e] = 0.0f;

    for (int round = 0; first + round * TALL < last; round++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        fetch(round + STAGES - 1);
        const u16* tile = ring + round % STAGES * STAGE;
        if (ALONG) {
            float found[GROUPS][4];
#pragma unroll
            for (int g = 0; g < GROUPS; g++)
#pragma unroll
                for (int e = 0; e < 4; e++) found[g][e] = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                u32 left[4];
                const u16* at = tile + tall * 16 * ROW + half * (WIDE / 2) + step * 16;
                load_matrices(left, at + lane % 16 * ROW + lane / 16 * 8);
#pragma unroll
                for (int g = 0; g < GROUPS; g++) multiply(found[g], left, right[g][step][0], right[g][step][1]);
            }
            // The other half's sums come through shared memory.
            float* room = (float*)(ring + STAGES * STAGE) + (tall * 16 + lane / 4) * COLUMNS + lane % 4 * 2;
            if (half == 1) {
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    *(float2*)(room + g * 8) = make_float2(found[g][0], found[g][1]);
                    *(float2*)(room + 8 * COLUMNS + g * 8) = make_float2(found[g][2], found[g][3]);
                }
            }
            __syncthreads();
            if (half == 0) {
#pragma unroll
                for (int lower = 0; lower < 2; lower++) {
                    const int token = first + round * TALL + tall * 16 + lane / 4 + lower * 8;
                    if (token >= last) continue;
                    float* to = along + ((i64)blockIdx.x * tokens + token) * COLUMNS + lane % 4 * 2;
#pragma unroll
                    for (int g = 0; g < GROUPS; g++) {
                        const float2 other = *(const float2*)(room + lower * 8 * COLUMNS + g * 8);
                        *(float2*)(to + g * 8) =
                            make_float2(found[g][lower * 2] + other.x, found[g][lower * 2 + 1] + other.y);
                    }
                }
            }
        }
        if (DOWN) {
#pragma unroll
            for (int token = 0; token < TALL; token += 32) {
                u32 right[GROUPS][4];
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    const u16* l = tile + TALL * ROW + g * 8 / RANK * TALL * RANK + g * 8 % RANK;
                    load_matrices_turned(right[g], l + (token + lane) * RANK);
                }
#pragma unroll
                for (int step = 0; step < 2; step++) {
#pragma unroll
                    for (int part = 0; part < 2; part++) {
                        u32 left[4];
                        const u16* at = tile + (token + step * 16 + lane % 8 + lane / 16 * 8) * ROW;
                        load_matrices_turned(left, at + warp * 32 + part * 16 + lane / 8 % 2 * 8);
#pragma unroll
                        for (int g = 0; g < GROUPS; g++)
                            multiply(sums[part][g], left, right[g][step * 2], right[g][step * 2 + 1]);
                    }
                }
            }
        }
    }
    if (DOWN) {
#pragma unroll
        for (int part = 0; part < 2; part++) {
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                const int column = column0 + warp * 32 + part * 16 + lane / 4 + lower * 8;
                if (column >= width) continue;
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    const int at = g * 8 + lane % 4 * 2;
                    const float a = sums[part][g][lower * 2], b = sums[part][g][lower * 2 + 1];
                    if (TURNED) {
                        *(float2*)(down + ((i64)blockIdx.y * width + column) * RANK + at) = make_float2(a, b);
                    } else {
                        float* to = down + ((i64)blockIdx.y * COLUMNS + at) * width + column;
                        to[0] = a, to[width] = b;
                    }
                }
            }
        }
    }
}

// low[set] = scale[set] * the sums along, [tokens, RANK]; grad[set] (=|+=, bit `set` of adds) those down, [RANK, width],
// TURNED [width, RANK]. Four threads join four numbers, each a quarter of the `tiles` or `stretches`.
extern "C" __global__ void __launch_bounds__(THREADS) sum(
    u16* low0, u16* low1, u16* low2, float scale0, float scale1, float scale2, float* grad0, float* grad1, float* grad2,
    const float* along, const float* down, int tokens, int width, int tiles, int stretches, int adds) {
    const i64 index = (i64)blockIdx.x * THREADS + threadIdx.x;
    const i64 in_low = ALONG ? (i64)tokens * COLUMNS : 0, in_grad = DOWN ? (i64)width * COLUMNS : 0;
    const bool is_low = index < in_low;
    const i64 number = (is_low ? index : index - in_low) / 4 * 4, all = is_low ? in_low : in_grad;
    const float* from = (is_low ? along : down) + number;
    const bool there = number < all;
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (there) {
        const int parts = is_low ? tiles : stretches;
#pragma unroll 4
        for (int part = index % 4; part < parts; part += 4) {
            const float4 more = __ldcg((const float4*)(from + part * all));
            total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
        }
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        total.x += __shfl_xor_sync(0xffffffffu, total.x, step);
        total.y += __shfl_xor_sync(0xffffffffu, total.y, step);
        total.z += __shfl_xor_sync(0xffffffffu, total.z, step);
        total.w += __shfl_xor_sync(0xffffffffu, total.w, step);
    }
    if (!there || index % 4 != 0) return;
    if (is_low) {
        const i64 token = number / COLUMNS;
        const int at = number % COLUMNS, set = at / RANK;
        const float scale = set == 0 ? scale0 : set == 1 ? scale1 : scale2;
        const uint2 words =
            make_uint2(pack(total.x * scale, total.y * scale), pack(total.z * scale, total.w * scale));
        *(uint2*)(one_of(set, low0, low1, low2) + token * RANK + at % RANK) = words;
    } else {
        const int set = number / ((i64)RANK * width);
        float4* to = (float4*)(one_of(set, grad0, grad1, grad2) + number % ((i64)RANK * width));
        if (adds >> set & 1) {
            const float4 old = *to;
            total.x += old.x, total.y += old.y, total.z += old.z, total.w += old.w;
        }
        *to = total;
    }
}
