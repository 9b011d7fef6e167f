/* What the C++ headers of all models have in common: C++20, on top of the C interface. */
#ifndef SECATEUR_MODEL_HPP
#define SECATEUR_MODEL_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>

/* What runs have in common. `weights` are for models whose weights lie apart, aligned to 64 bytes;
 * they and the pool outlive the model. */
struct secateur_options {
    ::std::uint32_t threads = 1; /* of the library's own, where it has them */
    const secateur_pool *pool = nullptr;
    ::std::span<const ::std::byte> weights = {};
};

/* A status other than SECATEUR_OK. */
class secateur_error : public ::std::runtime_error {
  public:
    secateur_error(int status, const char *text) : ::std::runtime_error(text), status_(status) {}
    int status() const noexcept { return status_; }

  private:
    int status_;
};

struct secateur_release {
    void operator()(::std::byte *memory) const noexcept {
        ::operator delete(memory, ::std::align_val_t{64});
    }
};

/* A model with a workspace: its own, or the caller's memory. What derives from it knows the types. */
class secateur_base {
  public:
    const secateur_model &description() const noexcept { return *model_; }

  protected:
    /* The workspace is aligned to 64 bytes and outlives the model. */
    secateur_base(
        const secateur_model &model, const char *digest, ::std::span<::std::byte> workspace,
        const secateur_options &options) noexcept
        : model_(&model), fits_(::std::strcmp(model.digest, digest) == 0) {
        call_.version = SECATEUR_INTERFACE;
        call_.threads = options.threads;
        call_.workspace = workspace.data();
        call_.workspace_bytes = workspace.size();
        call_.weights = options.weights.data();
        call_.weights_bytes = options.weights.size();
        call_.pool = options.pool;
    }

    /* Has a workspace of its own of at least so many bytes; without memory for it runs are
     * SECATEUR_BAD_WORKSPACE. */
    void own_workspace(::std::size_t bytes) noexcept {
        if (bytes <= call_.workspace_bytes) return;
        own_.reset();
        void *memory = ::operator new(bytes, ::std::align_val_t{64}, ::std::nothrow);
        own_.reset(static_cast<::std::byte *>(memory));
        call_.workspace = memory;
        call_.workspace_bytes = memory == nullptr ? 0 : bytes;
    }

    /* Whether the library is the header's. */
    bool fits() const noexcept { return fits_ && model_->version == SECATEUR_INTERFACE; }

#ifdef __cpp_exceptions
    void check(int status) const {
        if (status != SECATEUR_OK) throw secateur_error(status, model_->error_text(status));
    }
#endif

    const secateur_model *model_;
    bool fits_;
    secateur_call call_ = {};
    ::std::unique_ptr<::std::byte, secateur_release> own_;
};

/* A model whose sizes are known, but for the number of samples. */
template <::std::size_t Inputs, ::std::size_t Outputs, ::std::size_t Rank>
class secateur_runner : public secateur_base {
  public:
    /* Allocates the workspace. */
    secateur_runner(
        const secateur_model &model, const char *digest, const secateur_options &options) noexcept
        : secateur_base(model, digest, ::std::span<::std::byte>(), options) {
        own_workspace(model.workspace_bytes(&call_));
    }

    /* Allocates nothing. */
    secateur_runner(
        const secateur_model &model, const char *digest, ::std::span<::std::byte> workspace,
        const secateur_options &options) noexcept
        : secateur_base(model, digest, workspace, options) {}

  protected:
    /* Runs on tensors whose bytes say how many samples there are; what is no whole sample, another
     * number of samples, or of other than a batch another size, is a wrong input or output. A header
     * of another model than the library's is a wrong call. */
    int run_tensors(
        ::std::array<secateur_input, Inputs> inputs,
        ::std::array<secateur_output, Outputs> outputs) noexcept {
        if (!fits()) return SECATEUR_BAD_CALL;
        ::std::int64_t samples = -1;
        for (::std::size_t i = 0; i < Inputs; i++) {
            if (!counts(model_->inputs[i], inputs[i].bytes, samples)) {
                return SECATEUR_BAD_INPUT | static_cast<int>(i << 8);
            }
        }
        for (::std::size_t i = 0; i < Outputs; i++) {
            if (!counts(model_->outputs[i], outputs[i].bytes, samples)) {
                return SECATEUR_BAD_OUTPUT | static_cast<int>(i << 8);
            }
        }
        ::std::int64_t sizes[Inputs == 0 ? 1 : Inputs][Rank == 0 ? 1 : Rank];
        for (::std::size_t i = 0; i < Inputs; i++) {
            const secateur_tensor &t = model_->inputs[i];
            if (t.is_batch == 0) continue;
            for (::std::size_t k = 0; k < t.rank; k++) sizes[i][k] = t.dimensions[k];
            sizes[i][0] = samples < 0 ? 1 : samples;
            inputs[i].dimensions = sizes[i];
            inputs[i].rank = t.rank;
        }
        secateur_call call = call_;
        call.inputs = inputs.data();
        call.outputs = outputs.data();
        call.input_count = Inputs;
        call.output_count = Outputs;
        return model_->run(&call);
    }

  private:
    static bool counts(
        const secateur_tensor &t, ::std::size_t bytes, ::std::int64_t &samples) noexcept {
        if (t.is_batch == 0 || t.bytes == 0) return bytes == t.bytes;
        ::std::int64_t own = static_cast<::std::int64_t>(bytes / t.bytes);
        if (samples < 0) samples = own;
        return bytes % t.bytes == 0 && own == samples;
    }
};

#endif
