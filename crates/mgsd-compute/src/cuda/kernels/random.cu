// Normal numbers with mean 0: number i is a function of the seed and i alone (a 64-bit mix, then Box and Muller).
__device__ __forceinline__ u64 mixed(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

extern "C" __global__ void normal(T* out, u64 seed, float deviation, i64 n) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    u64 bits = mixed(seed ^ mixed(at));
    float u = ((u32)(bits >> 40) + 1) * (1.0f / 16777217.0f), v = (u32)(bits & 0xffffff) * (1.0f / 16777216.0f);
    out[at] = narrow<T>(deviation * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
}
