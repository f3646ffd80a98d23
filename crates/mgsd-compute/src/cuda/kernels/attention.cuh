// What the attention kernels share. Put in front of each of them, after tensor_cores.cuh, before it is compiled.
//
// Set when compiling:
//   HEAD_DIM  numbers in a head, a multiple of 8
//   CAUSAL    1: a query sees itself and what came before in its segment; 0: it sees the whole segment
//   BF16      1: tensors hold bf16, products run on tensor cores and sum in f32; 0: everything is f32, for checking
//
// Sequences lie one after another in the rows of every tensor. A block works on one entry of a table of tiles that the
// host makes: (first row of the segment, row after its last, first row of the tile, unused). A tile is TILE rows of one
// segment, fewer at its end. Any order is right; the longest work first is fastest.
//
// Rows of a tensor are `stride` elements apart, a head's numbers lie together. In bf16, pointers must be multiples of
// 16 bytes and strides multiples of 8.

#if !defined(HEAD_DIM) || !defined(CAUSAL) || !defined(BF16)
#error "set HEAD_DIM, CAUSAL and BF16"
#endif
#if HEAD_DIM % 8 != 0 || HEAD_DIM < 8 || HEAD_DIM > 128
#error "HEAD_DIM must be a multiple of 8 from 8 to 128"
#endif

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define INFINITE __int_as_float(0x7f800000)

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if BF16

typedef unsigned short number;
// Rows of queries (keys in the pass for dk and dv) that a block owns.
#define TILE 128
// Width of a head in shared memory: whole steps of the matrix instruction, the rest zero.
#define WIDE ((HEAD_DIM + 15) / 16 * 16)
// Elements from row to row in shared memory: an odd number of 16-byte pieces, so that eight rows hit all banks.
#define ROW (WIDE + 8)
#define PIECES (HEAD_DIM / 8)
#define STEPS (WIDE / 16)

// Rows `0..valid` of `from` into a tile of ROWS rows, zeros after them.
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(number *to, const number *from, int stride, int valid) {
#pragma unroll
    for (int first = 0; first < ROWS * PIECES; first += THREADS) {
        const int i = first + (int)threadIdx.x;
        if (ROWS * PIECES % THREADS == 0 || i < ROWS * PIECES) {
            const int row = i / PIECES, piece = i % PIECES;
            const bool inside = row < valid;
            const number *source = from + (long long)(inside ? row : 0) * stride + piece * 8;
            copy_16(shared_address(to + row * ROW + piece * 8), source, inside);
        }
    }
}

// Zeros in the columns HEAD_DIM..WIDE of `rows` rows; copies never touch them.
template <int THREADS> __device__ __forceinline__ void clear_rest(number *at, int rows) {
#if WIDE != HEAD_DIM
    for (int row = threadIdx.x; row < rows; row += THREADS)
        *(uint4 *)(at + row * ROW + HEAD_DIM) = make_uint4(0, 0, 0, 0);
#endif
}

// The left operand, 16 rows by 16 columns of a tile.
__device__ __forceinline__ void load_left(u32 (&a)[4], const number *tile, int lane) {
    load_matrices(a, tile + (lane & 15) * ROW + (lane >> 4) * 8);
}
// The right operand for two blocks of 8 result columns: those columns are 16 rows of the tile, summed over 16 columns.
__device__ __forceinline__ void load_right_by_rows(u32 (&b)[4], const number *tile, int lane) {
    load_matrices(b, tile + ((lane & 7) + (lane >> 4) * 8) * ROW + ((lane >> 3) & 1) * 8);
}
// The same when the result columns are 16 columns of the tile, summed over 16 rows.
__device__ __forceinline__ void load_right_by_columns(u32 (&b)[4], const number *tile, int lane) {
    load_matrices_turned(b, tile + (lane & 15) * ROW + (lane >> 4) * 8);
}

// 16 columns of results as the left operand of the next product.
__device__ __forceinline__ void as_left(u32 (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = pack(x[0], x[1]);
    a[1] = pack(x[2], x[3]);
    a[2] = pack(y[0], y[1]);
    a[3] = pack(y[2], y[3]);
}

// Writes 16 rows of results, times a factor for each of a thread's two rows, through `room` (16 rows of shared memory
// that only this warp uses) to the first `valid` rows of `to`.
__device__ __forceinline__ void store_rows(
    number *to, int stride, int valid, number *room, const float (&c)[WIDE / 8][4], float upper, float lower, int lane
) {
    __syncwarp();
#pragma unroll
    for (int n = 0; n < WIDE / 8; n++) {
        number *at = room + (lane >> 2) * ROW + n * 8 + (lane & 3) * 2;
        *(u32 *)at = pack(c[n][0] * upper, c[n][1] * upper);
        *(u32 *)(at + 8 * ROW) = pack(c[n][2] * lower, c[n][3] * lower);
    }
    __syncwarp();
    for (int i = lane; i < 16 * PIECES; i += 32) {
        const int row = i / PIECES, piece = i % PIECES;
        if (row < valid) *(uint4 *)(to + (long long)row * stride + piece * 8) = *(const uint4 *)(room + row * ROW + piece * 8);
    }
}

#else

typedef float number;
#define TILE 32
// Elements from row to row in shared memory.
#define ROW (HEAD_DIM + 2)

// Rows `0..valid` of `from` into a tile of TILE rows, zeros after them.
template <int THREADS> __device__ __forceinline__ void load_tile(float *to, const float *from, int stride, int valid) {
    for (int i = threadIdx.x; i < TILE * HEAD_DIM; i += THREADS) {
        const int row = i / HEAD_DIM, column = i % HEAD_DIM;
        to[row * ROW + column] = row < valid ? from[(long long)row * stride + column] : 0.0f;
    }
}

#endif
