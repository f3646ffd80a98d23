// The forward pass of attention for Hopper: the same function as attention_forward.cu, with the same arguments and
// grid; Shah et al., arXiv 2407.08608.
//
// Block 256 threads, two warpgroups of 64 query rows each (`Rows` in attention_hopper.cuh). Shared memory:
// 768 * HEAD_DIM bytes (a tile of queries, two of keys and two of values). Two blocks share a multiprocessor: while the
// warpgroups of one are at the softmax, those of the other keep the tensor cores busy.

#define THREADS 256
#define KEYS 64

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward(
    number *__restrict__ out, float *__restrict__ log_sum_exp, const number *__restrict__ q,
    const number *__restrict__ k, const number *__restrict__ v, const int4 *__restrict__ tiles, int out_stride,
    int q_stride, int k_stride, int v_stride, int group, float scale
) {
    extern __shared__ __align__(1024) number shared[];
    number *queries = shared, *keys = queries + TILE * HEAD_DIM, *values = keys + 2 * KEYS * HEAD_DIM;

    const int4 tile = tiles[blockIdx.y];
    const int heads = gridDim.x, kv_head = blockIdx.x / group, length = tile.y - tile.x;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warpgroup = threadIdx.x >> 7;
    const Rows rows = rows_of(tile, warpgroup, group);
    if (rows.block_first >= length) return;
    const int seen = CAUSAL ? min(rows.block_end, length) : length, rounds = (seen + KEYS - 1) / KEYS;

    // What this thread copies of keys and values: one piece of every STEP-th row, from here on.
    const int STEP = THREADS / PIECES, piece = threadIdx.x % PIECES, copied = threadIdx.x / PIECES;
    const u32 place = shared_address(keys) + place_of<KEYS>(copied, piece) * 2;
    int left = length - copied;
    k += (long long)(tile.x + copied) * k_stride + kv_head * HEAD_DIM + piece * 8;
    v += (long long)(tile.x + copied) * v_stride + kv_head * HEAD_DIM + piece * 8;
    const auto fetch = [&](int round) {
        const u32 to = place + (round & 1) * KEYS * HEAD_DIM * 2;
#pragma unroll
        for (int i = 0; i < KEYS / STEP; i++) {
            copy_16(to + i * STEP * 128, k + i * STEP * (long long)k_stride, i * STEP < left);
            copy_16(to + i * STEP * 128 + 2 * KEYS * HEAD_DIM * 2, v + i * STEP * (long long)v_stride, i * STEP < left);
        }
        k += KEYS * (long long)k_stride;
        v += KEYS * (long long)v_stride;
        left -= KEYS;
    };
    load_rows<THREADS>(queries, q, q_stride, tile, group);
    fetch(0);
    copies_done_so_far();

    // This thread's rows are this one and the eighth after it.
    const int row = rows.first + (warp & 3) * 16 + (lane >> 2);
    const float factor = scale * LOG2_E;
    const u64 own = by_rows(queries + warpgroup * 64 * HEAD_DIM);
    float scores[KEYS / 2], sums[HEAD_DIM / 2];
    u32 weights[KEYS / 16][4];
    float highest[2] = {-INFINITE, -INFINITE}, total[2] = {0.0f, 0.0f}, shrink[2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.0f;

    // From scores to weights that are not divided by their sum yet.
    const auto soften = [&](int key0) {
        if (key0 + KEYS > length || (CAUSAL && key0 + KEYS > rows.block_first + 1)) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) {
                const int key = key0 + i / 4 * 8 + (lane & 3) * 2 + (i & 1);
                if (key >= length || (CAUSAL && key > row + (i & 2) * 4)) scores[i] = -INFINITE;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = highest[half];
#pragma unroll
            for (int i = half * 2; i < KEYS / 2; i += 4) top = fmaxf(top, fmaxf(scores[i], scores[i + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            const float shift = top * factor;
            shrink[half] = exp2_fast(highest[half] * factor - shift);
            highest[half] = top;
            float sum = 0.0f;
#pragma unroll
            for (int i = half * 2; i < KEYS / 2; i += 4) {
                scores[i] = exp2_fast(fmaf(scores[i], factor, -shift));
                scores[i + 1] = exp2_fast(fmaf(scores[i + 1], factor, -shift));
                sum += scores[i] + scores[i + 1];
            }
            total[half] = fmaf(total[half], shrink[half], sum);
        }
    };

    for (int round = 0; round < rounds; round++) {
        wait_copies<0>();
        show_to_products();
        __syncthreads();
        begin_products();
        start_scores<64, KEYS>(scores, own, by_rows(keys + (round & 1) * KEYS * HEAD_DIM));
        products_so_far();
        if (round + 1 < rounds) fetch(round + 1);
        copies_done_so_far();
        wait_products<0>();
        settle(scores);
        soften(round * KEYS);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] *= shrink[(i >> 1) & 1];
        as_lefts(weights, scores);
        settle(sums);
        begin_products();
        start_sums(sums, weights, by_columns<KEYS>(values + (round & 1) * KEYS * HEAD_DIM));
        products_so_far();
        wait_products<0>();
        settle(sums);
    }

    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        inverse[half] = 1.0f / sum;
        const int query = row + half * 8;
        if ((lane & 3) == 0 && query < length)
            log_sum_exp[(long long)(tile.x + query) * heads + rows.head] = highest[half] * scale + logf(sum);
    }
    join_warpgroup(warpgroup);
    const int row0 = row - (lane >> 2);
    number *to = out + (long long)(tile.x + row0) * out_stride + rows.head * HEAD_DIM;
    number *room = queries + warpgroup * 64 * HEAD_DIM;
    store_panels<64>(to, out_stride, length - row0, room, (warp & 3) * 16, sums, inverse[0], inverse[1], lane);
}
