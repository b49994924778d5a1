// Mistakes on purpose: gpu-check believes a tool of compute-sanitizer only if it finds the one meant for it.
#include <cstdio>
#include <cstring>

__global__ void writesBeyond(int* values)
{
    values[threadIdx.x] = 1;
}

// Warps read what other warps write, without a barrier between.
__global__ void lacksBarrier(int* values)
{
    __shared__ int shared[64];
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    values[threadIdx.x] = shared[63U - threadIdx.x];
}

int main(int argc, char** argv)
{
    bool const races = argc > 1 && std::strcmp(argv[1], "racecheck") == 0;
    int* values = nullptr;
    cudaError_t status = cudaMalloc(&values, (races ? 64U : 63U) * sizeof(int));
    if (status == cudaSuccess)
    {
        if (races)
        {
            lacksBarrier<<<1, 64>>>(values);
        }
        else
        {
            writesBeyond<<<1, 64>>>(values);
        }
        status = cudaDeviceSynchronize();
    }
    std::printf("planted: %s\n", cudaGetErrorString(status));
    return 0;
}
