// How the next token is chosen from logits, and the random numbers for it: those that numpy's default_rng gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trtc::runtime
{

//! What `trt_compress.runtime.generate.sampling.Sampling` says of choosing.
struct Sampling
{
    double temperature = 0.0;
    int64_t topK = 0;
    double topP = 1.0;
    double minP = 0.0;
    double repetitionPenalty = 1.0;
};

//! Throw Error (TRTC_ERROR_CONFIG) if a setting is not allowed.
void checkSampling(Sampling const& sampling);

//! PCG64 (XSL RR 128/64), begun by a seed as numpy's SeedSequence does it.
//! Sources: O'Neill 2014, HMC-CS-2014-0905; numpy's bit_generator.pyx and pcg64.h.
class Random
{
public:
    explicit Random(uint64_t seed);

    //! From 0 to below 1, of 53 bits.
    double next();

private:
    __extension__ typedef unsigned __int128 Wide;
    Wide mState = 0, mStep = 0;

    void advance();
};

//! Chooses the tokens of one sequence.
class Chooser
{
public:
    //! `prompt`: what a repetition penalty counts as read.
    Chooser(Sampling const& sampling, uint64_t seed, std::vector<int64_t> const& prompt);

    //! The next token; logits that are penalised are changed. Throws Error: no token can follow.
    int64_t choose(std::vector<float>& logits);

private:
    Sampling mSampling;
    Random mRandom;
    std::vector<bool> mRead;
    std::vector<float> mWeights;
    std::vector<int64_t> mLeft, mOrder;

    int64_t draw(std::vector<float> const& logits, float largest);
};

} // namespace trtc::runtime
