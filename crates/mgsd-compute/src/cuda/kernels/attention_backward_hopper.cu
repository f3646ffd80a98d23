// The backward pass of attention for Hopper: the same functions as in attention_backward.cu, with the same arguments;
// the keys kernel has a grid of its own.

// Rows of the side that is walked over, at a time.
#define WALK 64

#define KEYS_THREADS 128
#define KEYS_STAGES 2

// Grid (2 * kv_heads, tiles), block 128 threads: one warpgroup has half of a tile's keys, and two blocks share a
// multiprocessor, so that one is at the weights while the other keeps the tensor cores busy.
// Shared memory: 768 * HEAD_DIM + 1024 bytes.
extern "C" __global__ void __launch_bounds__(KEYS_THREADS, 2) attention_backward_keys(
    number *__restrict__ dk, number *__restrict__ dv, const number *__restrict__ dout, const number *__restrict__ q,
    const number *__restrict__ k, const number *__restrict__ v, const float *__restrict__ log_sum_exp,
    const float *__restrict__ delta, const int4 *__restrict__ tiles, int dk_stride, int dv_stride, int dout_stride,
    int q_stride, int k_stride, int v_stride, int group, float scale
) {
    extern __shared__ __align__(1024) number shared[];
    number *keys = shared, *values = keys + 64 * HEAD_DIM;
    number *queries = values + 64 * HEAD_DIM, *douts = queries + KEYS_STAGES * WALK * HEAD_DIM;
    // [KEYS_STAGES][WALK] each.
    float *lse = (float *)(douts + KEYS_STAGES * WALK * HEAD_DIM), *deltas = lse + KEYS_STAGES * WALK;

    const int4 tile = tiles[blockIdx.y];
    const int kv_head = blockIdx.x / 2, heads = gridDim.x / 2 * group;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int length = tile.y - tile.x, first = tile.z - tile.x + (blockIdx.x & 1) * 64;
    const int row = first + warp * 16 + (lane >> 2);
    if (first >= length) return;
    const int from = CAUSAL ? first : 0, rounds = (length - from + WALK - 1) / WALK * group;

    // What is fetched next.
    int next_head = kv_head * group, next_query = from;
    const auto fetch = [&](int round) {
        if (round < rounds) {
            const int head = next_head, query0 = next_query, stage = round % KEYS_STAGES;
            next_query += WALK;
            if (next_query >= length) next_head++, next_query = from;
            const long long at = tile.x + query0;
            load_panels<WALK, KEYS_THREADS>(
                queries + stage * WALK * HEAD_DIM, q + at * q_stride + head * HEAD_DIM, q_stride, length - query0);
            load_panels<WALK, KEYS_THREADS>(
                douts + stage * WALK * HEAD_DIM, dout + at * dout_stride + head * HEAD_DIM, dout_stride, length - query0);
            if (threadIdx.x < 2 * WALK) {
                const int i = threadIdx.x % WALK;
                const bool inside = query0 + i < length;
                const float *source = (threadIdx.x < WALK ? log_sum_exp : delta) + (inside ? at + i : at) * heads + head;
                const u32 to = shared_address((threadIdx.x < WALK ? lse : deltas) + stage * WALK + i);
                asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(source), "r"(inside ? 4 : 0)
                             : "memory");
            }
        }
        copies_done_so_far();
    };
    const long long own = tile.x + first;
    load_panels<64, KEYS_THREADS>(keys, k + own * k_stride + kv_head * HEAD_DIM, k_stride, length - first);
    load_panels<64, KEYS_THREADS>(values, v + own * v_stride + kv_head * HEAD_DIM, v_stride, length - first);
    fetch(0);

    const float factor = scale * LOG2_E;
    const u64 own_keys = by_rows(keys), own_values = by_rows(values);
    float p[WALK / 2], ds[WALK / 2], dk_sums[HEAD_DIM / 2], dv_sums[HEAD_DIM / 2];
    u32 weights[WALK / 16][4], slopes[WALK / 16][4];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) dk_sums[i] = dv_sums[i] = 0.0f;

    // Keys are rows, queries columns, so that both results are left operands of the sums as they are.
    const auto score = [&](int round) {
        const int at = round % KEYS_STAGES * WALK * HEAD_DIM;
        start_scores<64, WALK>(p, own_keys, by_rows(queries + at));
        products_so_far();
        start_scores<64, WALK>(ds, own_values, by_rows(douts + at));
        products_so_far();
    };
    int query0 = from;
    const auto weigh = [&](int round) {
        const int stage = round % KEYS_STAGES;
        const bool edge = CAUSAL && query0 < first + 64;
#pragma unroll
        for (int n = 0; n < WALK / 8; n++) {
            const int column = n * 8 + (lane & 3) * 2;
            const float2 shift = *(const float2 *)(lse + stage * WALK + column);
            const float minus[2] = {-LOG2_E * shift.x, -LOG2_E * shift.y};
#pragma unroll
            for (int e = 0; e < 4; e++) p[n * 4 + e] = exp2_fast(fmaf(p[n * 4 + e], factor, minus[e & 1]));
        }
        if (edge) {
#pragma unroll
            for (int i = 0; i < WALK / 2; i++)
                if (query0 + i / 4 * 8 + (lane & 3) * 2 + (i & 1) < row + (i & 2) * 4) p[i] = 0.0f;
        }
        query0 += WALK;
        if (query0 >= length) query0 = from;
    };
    const auto slope = [&](int round) {
        const int stage = round % KEYS_STAGES;
#pragma unroll
        for (int n = 0; n < WALK / 8; n++) {
            const float2 less = *(const float2 *)(deltas + stage * WALK + n * 8 + (lane & 3) * 2);
#pragma unroll
            for (int e = 0; e < 4; e++) ds[n * 4 + e] = p[n * 4 + e] * (ds[n * 4 + e] - (e & 1 ? less.y : less.x));
        }
    };

    for (int round = 0; round < rounds; round++) {
        wait_copies<0>();
        show_to_products();
        __syncthreads();
        begin_products();
        score(round);
        fetch(round + 1);
        wait_products<1>();
        settle(p);
        weigh(round);
        as_lefts(weights, p);
        settle(dv_sums);
        begin_products();
        start_sums(dv_sums, weights, by_columns<WALK>(douts + round % KEYS_STAGES * WALK * HEAD_DIM));
        products_so_far();
        wait_products<1>();
        settle(ds);
        slope(round);
        as_lefts(slopes, ds);
        settle(dk_sums);
        begin_products();
        start_sums(dk_sums, slopes, by_columns<WALK>(queries + round % KEYS_STAGES * WALK * HEAD_DIM));
        products_so_far();
        wait_products<0>();
        settle(dk_sums);
        settle(dv_sums);
    }
    __syncthreads();

    const int row0 = first + warp * 16;
    const long long at = tile.x + row0;
    number *dk_rows = dk + at * dk_stride + kv_head * HEAD_DIM, *dv_rows = dv + at * dv_stride + kv_head * HEAD_DIM;
    store_panels<64>(dk_rows, dk_stride, length - row0, keys, warp * 16, dk_sums, scale, scale, lane);
    store_panels<64>(dv_rows, dv_stride, length - row0, values, warp * 16, dv_sums, 1.0f, 1.0f, lane);
}

#define QUERIES_THREADS 256
// Tiles of keys and of values that shared memory holds.
#define QUERIES_STAGES 4

// Grid (heads, tiles), block 256 threads, two warpgroups (`Rows` in attention_hopper.cuh). They score what comes next
// while the sums of what came before are under way, and do not wait for each other unless one is a round behind. Shared
// memory: 1536 * HEAD_DIM bytes.
extern "C" __global__ void __launch_bounds__(QUERIES_THREADS, 1) attention_backward_queries(
    number *__restrict__ dq, const number *__restrict__ dout, const number *__restrict__ q,
    const number *__restrict__ k, const number *__restrict__ v, const float *__restrict__ log_sum_exp,
    const float *__restrict__ delta, const int4 *__restrict__ tiles, int dq_stride, int dout_stride, int q_stride,
    int k_stride, int v_stride, int group, float scale
) {
    extern __shared__ __align__(1024) number shared[];
    number *queries = shared, *douts = queries + TILE * HEAD_DIM;
    number *keys = douts + TILE * HEAD_DIM, *values = keys + QUERIES_STAGES * WALK * HEAD_DIM;

    const int4 tile = tiles[blockIdx.y];
    const int heads = gridDim.x, kv_head = blockIdx.x / group, length = tile.y - tile.x;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warpgroup = threadIdx.x >> 7;
    const Rows rows = rows_of(tile, warpgroup, group);
    const int first = rows.first, head = rows.head, row = first + (warp & 3) * 16 + (lane >> 2);
    if (rows.block_first >= length) return;
    const int seen = CAUSAL ? min(rows.block_end, length) : length, rounds = (seen + WALK - 1) / WALK;
    k += (long long)tile.x * k_stride + kv_head * HEAD_DIM;
    v += (long long)tile.x * v_stride + kv_head * HEAD_DIM;

    const auto fetch = [&](int round) {
        if (round < rounds) {
            const int key0 = round * WALK, to = round % QUERIES_STAGES * WALK * HEAD_DIM;
            load_panels<WALK, QUERIES_THREADS>(keys + to, k + (long long)key0 * k_stride, k_stride, length - key0);
            load_panels<WALK, QUERIES_THREADS>(values + to, v + (long long)key0 * v_stride, v_stride, length - key0);
        }
        copies_done_so_far();
    };
    load_rows<QUERIES_THREADS>(queries, q, q_stride, tile, group);
    load_rows<QUERIES_THREADS>(douts, dout, dout_stride, tile, group);
    fetch(0);
    fetch(1);
    // Of each place for a tile: all of the tile is there; nobody reads it any more.
    __shared__ u64 filled[QUERIES_STAGES], emptied[QUERIES_STAGES];
    if (threadIdx.x < QUERIES_STAGES) {
        set_barrier(filled + threadIdx.x, QUERIES_THREADS / 32);
        set_barrier(emptied + threadIdx.x, QUERIES_THREADS / 32);
    }
    const auto fetch_far = [&](int round) {
        const int stage = round % QUERIES_STAGES;
        if (round >= QUERIES_STAGES && round < rounds) wait_turn(emptied + stage, round / QUERIES_STAGES - 1);
        fetch(round);
        // The tile before it is there, as far as this thread copied it.
        wait_copies<1>();
        show_to_products();
        arrive(filled + (round - 1) % QUERIES_STAGES, lane);
    };

    float shift[2], less[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = row + half * 8;
        const long long at = (long long)(tile.x + query) * heads + head;
        shift[half] = query < length ? LOG2_E * log_sum_exp[at] : 0.0f;
        less[half] = query < length ? delta[at] : 0.0f;
    }
    const float factor = scale * LOG2_E;
    const u64 own_queries = by_rows(queries + warpgroup * 64 * HEAD_DIM);
    const u64 own_douts = by_rows(douts + warpgroup * 64 * HEAD_DIM);
    float p[WALK / 2], ds[WALK / 2], sums[HEAD_DIM / 2];
    u32 slopes[WALK / 16][4];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.0f;

    const auto score = [&](int round) {
        const int at = round % QUERIES_STAGES * WALK * HEAD_DIM;
        start_scores<64, WALK>(p, own_queries, by_rows(keys + at));
        products_so_far();
        start_scores<64, WALK>(ds, own_douts, by_rows(values + at));
        products_so_far();
    };
    const auto weigh = [&](int round) {
        const int key0 = round * WALK;
        const bool edge = key0 + WALK > length || (CAUSAL && key0 + WALK > first + 1);
#pragma unroll
        for (int i = 0; i < WALK / 2; i++) p[i] = exp2_fast(fmaf(p[i], factor, -shift[(i >> 1) & 1]));
        if (edge) {
#pragma unroll
            for (int i = 0; i < WALK / 2; i++) {
                const int key = key0 + i / 4 * 8 + (lane & 3) * 2 + (i & 1);
                if (key >= length || (CAUSAL && key > row + (i & 2) * 4)) p[i] = 0.0f;
            }
        }
    };
    const auto slope = [&]() {
#pragma unroll
        for (int i = 0; i < WALK / 2; i++) ds[i] = p[i] * (ds[i] - less[(i >> 1) & 1]);
    };

    wait_copies<1>();
    show_to_products();
    __syncthreads();
    begin_products();
    score(0);
    arrive(filled, lane);
    fetch_far(2);
    wait_products<0>();
    settle(p);
    settle(ds);
    weigh(0);
    slope();
    as_lefts(slopes, ds);
    for (int round = 1; round < rounds; round++) {
        wait_turn(filled + round % QUERIES_STAGES, round / QUERIES_STAGES);
        begin_products();
        score(round);
        start_sums(sums, slopes, by_columns<WALK>(keys + (round - 1) % QUERIES_STAGES * WALK * HEAD_DIM));
        products_so_far();
        fetch_far(round + 2);
        wait_products<2>();
        settle(p);
        weigh(round);
        wait_products<1>();
        settle(ds);
        slope();
        wait_products<0>();
        settle(sums);
        arrive(emptied + (round - 1) % QUERIES_STAGES, lane);
        as_lefts(slopes, ds);
    }
    begin_products();
    start_sums(sums, slopes, by_columns<WALK>(keys + (rounds - 1) % QUERIES_STAGES * WALK * HEAD_DIM));
    products_so_far();
    wait_products<0>();
    settle(sums);
    join_warpgroup(warpgroup);

    const int row0 = first + (warp & 3) * 16;
    number *to = dq + (long long)(tile.x + row0) * dq_stride + head * HEAD_DIM;
    number *room = queries + warpgroup * 64 * HEAD_DIM;
    store_panels<64>(to, dq_stride, length - row0, room, (warp & 3) * 16, sums, scale, scale, lane);
}
