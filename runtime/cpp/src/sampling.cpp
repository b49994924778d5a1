#include "sampling.h"

#include "error.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace trtc::runtime
{
namespace
{

constexpr double kCOLDEST = 1e-6; // below it, what is drawn is the largest
constexpr double kFRACTIONS[] = {0x1p-5, 0x1p-9, 0x1p-14, 0x1p-20, 0.0};

void require(bool holds, char const* name, double value, char const* allowed)
{
    if (!holds)
    {
        throw configError(std::string(name) + "=" + std::to_string(value) + "; give a number " + allowed + ".");
    }
}

//! Hashes words into a pool, as SeedSequence does.
struct Hash
{
    uint32_t constant, factor;

    uint32_t operator()(uint32_t value) noexcept
    {
        value ^= constant;
        constant *= factor;
        value *= constant;
        return value ^ value >> 16;
    }
};

} // namespace

void checkSampling(Sampling const& sampling)
{
    auto const within = [](double value, double low, double high) { return low <= value && value <= high; };
    require(within(sampling.temperature, 0, 1000), "temperature", sampling.temperature, "from 0 to 1000");
    require(within(static_cast<double>(sampling.topK), 0, 2147483647), "top_k", static_cast<double>(sampling.topK),
        "from 0 to 2147483647");
    require(within(sampling.topP, 1e-300, 1), "top_p", sampling.topP, "above 0 and at most 1");
    require(within(sampling.minP, 0, 1), "min_p", sampling.minP, "from 0 to 1");
    require(within(sampling.repetitionPenalty, 1e-300, 1000), "repetition_penalty", sampling.repetitionPenalty,
        "above 0 and at most 1000");
}

Random::Random(uint64_t seed)
{
    uint32_t const words[4] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0};
    uint32_t pool[4];
    Hash hash = {0x43B0D7E5U, 0x931E8875U};
    for (int at = 0; at < 4; ++at)
    {
        pool[at] = hash(words[at]);
    }
    for (int from = 0; from < 4; ++from)
    {
        for (int into = 0; into < 4; ++into)
        {
            if (from != into)
            {
                uint32_t const mixed = pool[into] * 0xCA01F9DDU - hash(pool[from]) * 0x4973F715U;
                pool[into] = mixed ^ mixed >> 16;
            }
        }
    }
    Hash out = {0x8B51F9DDU, 0x58F38DEDU};
    uint64_t made[4];
    for (int at = 0; at < 4; ++at)
    {
        uint64_t const low = out(pool[2 * at % 4]);
        made[at] = static_cast<uint64_t>(out(pool[(2 * at + 1) % 4])) << 32 | low;
    }
    mStep = (static_cast<Wide>(made[2]) << 64 | made[3]) << 1 | 1;
    advance();
    mState += static_cast<Wide>(made[0]) << 64 | made[1];
    advance();
}

void Random::advance()
{
    constexpr Wide kFACTOR = static_cast<Wide>(0x2360ED051FC65DA4ULL) << 64 | 0x4385DF649FCCF645ULL;
    mState = mState * kFACTOR + mStep;
}

double Random::next()
{
    advance();
    auto const high = static_cast<uint64_t>(mState >> 64);
    uint64_t const mixed = high ^ static_cast<uint64_t>(mState);
    unsigned const turn = static_cast<unsigned>(high >> 58);
    uint64_t const drawn = mixed >> turn | mixed << (64 - turn) % 64;
    return static_cast<double>(drawn >> 11) * 0x1p-53;
}

Chooser::Chooser(Sampling const& sampling, uint64_t seed, std::vector<int64_t> const& prompt)
    : mSampling(sampling)
    , mRandom(seed)
{
    if (sampling.repetitionPenalty != 1)
    {
        for (int64_t const token : prompt)
        {
            mRead.resize(std::max(mRead.size(), static_cast<size_t>(token) + 1));
            mRead[static_cast<size_t>(token)] = true;
        }
    }
}

int64_t Chooser::choose(std::vector<float>& logits)
{
    auto const penalty = static_cast<float>(mSampling.repetitionPenalty);
    for (size_t at = 0; at < std::min(mRead.size(), logits.size()); ++at)
    {
        if (mRead[at])
        {
            logits[at] = logits[at] < 0 ? logits[at] * penalty : logits[at] / penalty;
        }
    }
    size_t best = 0;
    for (size_t at = 0; at < logits.size(); ++at)
    {
        if (std::isnan(logits[at]))
        {
            throw unsupportedError("The bundle gave logits that are no numbers (NaN); verify it, or export it in a "
                                   "precision of more range.");
        }
        best = logits[at] > logits[best] ? at : best;
    }
    if (logits.empty() || !std::isfinite(logits[best]))
    {
        throw unsupportedError("No token can follow: every logit is -inf, or one is +inf; verify the bundle.");
    }
    auto const found = mSampling.temperature > 0 ? draw(logits, logits[best]) : static_cast<int64_t>(best);
    if (mSampling.repetitionPenalty != 1)
    {
        mRead.resize(std::max(mRead.size(), static_cast<size_t>(found) + 1));
        mRead[static_cast<size_t>(found)] = true;
    }
    return found;
}

int64_t Chooser::draw(std::vector<float> const& logits, float largest)
{
    double const temperature = std::max(mSampling.temperature, kCOLDEST);
    mLeft.resize(logits.size());
    std::iota(mLeft.begin(), mLeft.end(), int64_t{0});
    auto const logitOf = [&](int64_t token) { return logits[static_cast<size_t>(token)]; };
    if (mSampling.topK > 0 && static_cast<size_t>(mSampling.topK) < logits.size())
    {
        mOrder = mLeft;
        auto const last = mOrder.begin() + (mSampling.topK - 1);
        std::nth_element(mOrder.begin(), last, mOrder.end(),
            [&](int64_t one, int64_t other) { return logitOf(one) > logitOf(other); });
        float const least = logitOf(*last); // and those that are as probable
        mLeft.erase(
            std::remove_if(mLeft.begin(), mLeft.end(), [&](int64_t token) { return !(logitOf(token) >= least); }),
            mLeft.end());
    }
    auto const factor = static_cast<float>(1 / temperature);
    mWeights.resize(logits.size());
    auto const weightOf = [&](int64_t token) -> float& { return mWeights[static_cast<size_t>(token)]; };
    double total = 0;
    for (int64_t const token : mLeft)
    {
        float const below = logitOf(token) - largest;
        weightOf(token) = std::exp(temperature == 1 ? below : below * factor);
        total += static_cast<double>(weightOf(token));
    }
    if (mSampling.topP < 1)
    {
        double const wanted = mSampling.topP * total;
        for (double const fraction : kFRACTIONS) // only what is probable enough is sorted
        {
            mOrder.clear();
            double weight = 0;
            for (int64_t const token : mLeft)
            {
                if (static_cast<double>(weightOf(token)) >= fraction)
                {
                    mOrder.push_back(token);
                    weight += static_cast<double>(weightOf(token));
                }
            }
            if (weight >= wanted)
            {
                break;
            }
        }
        std::stable_sort(
            mOrder.begin(), mOrder.end(), [&](int64_t one, int64_t other) { return logitOf(one) > logitOf(other); });
        size_t count = 0;
        for (double weight = 0; count < mOrder.size() && (count == 0 || weight < wanted); ++count)
        {
            weight += static_cast<double>(weightOf(mOrder[count]));
        }
        mOrder.resize(count);
        std::sort(mOrder.begin(), mOrder.end());
        mLeft.swap(mOrder);
    }
    if (mSampling.minP > 0)
    {
        auto const least = static_cast<float>(mSampling.minP);
        mLeft.erase(std::remove_if(mLeft.begin(), mLeft.end(), [&](int64_t token) { return weightOf(token) < least; }),
            mLeft.end());
    }
    total = 0;
    for (int64_t const token : mLeft)
    {
        total += static_cast<double>(weightOf(token));
    }
    double const drawn = mRandom.next() * total;
    double sum = 0;
    int64_t last = mLeft.front(); // the last that adds something
    for (int64_t const token : mLeft)
    {
        auto const weight = static_cast<double>(weightOf(token));
        sum += weight;
        last = weight > 0 ? token : last;
        if (sum > drawn)
        {
            return token;
        }
    }
    return last;
}

} // namespace trtc::runtime
