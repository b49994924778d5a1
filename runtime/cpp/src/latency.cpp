// Latencies summed up: what a set of them supports saying, as `trt_compress.runtime.measure.latency` has it.

#include "api_call.h"
#include "json.h"

#include <cmath>

using namespace trtc::runtime;

namespace
{

struct Percentile
{
    char const* name;
    double share;
    size_t needed; //!< fewest samples that state it at 99 % confidence, with one sample over it allowed
};

constexpr Percentile kPERCENTILES[] = {
    {"p90_ns", 0.90, 64}, {"p95_ns", 0.95, 130}, {"p99_ns", 0.99, 662}, {"p99_9_ns", 0.999, 6636}};

Json numberOf(double value)
{
    Json made;
    made.kind = Json::Kind::kFLOAT;
    made.number = value;
    return made;
}

} // namespace

extern "C" {

trtc_status trtc_latency_summary(int64_t const* nanoseconds, size_t count, char** json, size_t* bytes)
{
    return guarded(
        [&]
        {
            needs(json, "json");
            needs(bytes, "bytes");
            *json = nullptr;
            *bytes = 0;
            if (count == 0)
            {
                throw configError("There are no latencies to summarize; time at least one run.");
            }
            needs(nanoseconds, "nanoseconds");
            std::vector<int64_t> sorted(nanoseconds, nanoseconds + count);
            std::sort(sorted.begin(), sorted.end());
            long double sum = 0, squares = 0;
            for (int64_t const each : sorted)
            {
                sum += static_cast<long double>(each);
            }
            long double const mean = sum / static_cast<long double>(count);
            for (int64_t const each : sorted)
            {
                squares += (static_cast<long double>(each) - mean) * (static_cast<long double>(each) - mean);
            }
            auto const deviation =
                count > 1 ? static_cast<double>(std::sqrt(squares / static_cast<long double>(count - 1))) : 0.0;
            auto const at = [&](size_t place) { return static_cast<double>(sorted[place]); };
            Json made, reasons;
            made.kind = reasons.kind = Json::Kind::kOBJECT;
            Json& number = made.members["n"];
            number.kind = Json::Kind::kINT;
            number.text = std::to_string(count);
            made.members["min_ns"] = numberOf(at(0));
            made.members["max_ns"] = numberOf(at(count - 1));
            made.members["mean_ns"] = numberOf(static_cast<double>(mean));
            made.members["median_ns"] = numberOf((at((count - 1) / 2) + at(count / 2)) / 2);
            made.members["std_ns"] = numberOf(deviation);
            made.members["cv"] = mean == 0 ? Json() : numberOf(deviation / static_cast<double>(mean));
            for (Percentile const& each : kPERCENTILES)
            {
                if (count >= each.needed) // the smallest sample that at least this share does not exceed
                {
                    auto const place = static_cast<size_t>(std::ceil(each.share * static_cast<double>(count) - 1e-9));
                    made.members[each.name] = numberOf(at(std::max<size_t>(place, 1) - 1));
                    continue;
                }
                made.members[each.name] = Json();
                Json& reason = reasons.members[each.name];
                reason.kind = Json::Kind::kSTRING;
                reason.text = "n too small: " + std::to_string(count) + " of " + std::to_string(each.needed);
            }
            made.members["reasons"] = reasons;
            std::string text;
            writeCanonical(made, text);
            *json = copied(text.data(), text.size());
            *bytes = text.size();
        });
}

} // extern "C"
