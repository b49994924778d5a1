// Lets one header serve C++17 on the host, CUDA, and CUDA run by the emulator of the tests.
#pragma once

#if defined(__CUDACC__)
#define TRTC_HOST_DEVICE __host__ __device__
#else
#define TRTC_HOST_DEVICE
#endif
