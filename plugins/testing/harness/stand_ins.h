// What TensorRT has and a plugin asks it for, as far as plugins here do.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

namespace trtc::harness
{

class Logger final : public nvinfer1::ILogger
{
public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        if (severity <= Severity::kERROR)
        {
            errors.emplace_back(message == nullptr ? "(null)" : message);
        }
    }

    std::vector<std::string> errors;
};

class LoggerFinder final : public nvinfer1::ILoggerFinder
{
public:
    explicit LoggerFinder(Logger& logger)
        : mLogger(logger)
    {
    }

    nvinfer1::ILogger* findLogger() override
    {
        return &mLogger;
    }

private:
    Logger& mLogger;
};

class ResourceContext final : public nvinfer1::IPluginResourceContext
{
public:
    ResourceContext() = default;
    ~ResourceContext() noexcept override = default;

    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }

    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return nullptr;
    }
};

} // namespace trtc::harness
