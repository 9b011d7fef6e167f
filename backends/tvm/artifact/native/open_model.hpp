/* What the C++ headers of models have besides whose sizes only a run fixes. */
#ifndef SECATEUR_OPEN_MODEL_HPP
#define SECATEUR_OPEN_MODEL_HPP

/* Elements in row-major order, and how many there are along each axis. */
template <class T, ::std::size_t Rank> struct secateur_view {
    ::std::span<T> data;
    ::std::array<::std::int64_t, Rank> dimensions = {};
};

/* A model some of whose sizes a run fixes. */
template <::std::size_t Inputs, ::std::size_t Outputs>
class secateur_open_runner : public secateur_base {
  public:
    /* Has a workspace of its own, which runs enlarge as they need it. */
    secateur_open_runner(
        const secateur_model &model, int (*shapes)(const secateur_call *), const char *digest,
        const secateur_options &options) noexcept
        : secateur_base(model, digest, ::std::span<::std::byte>(), options), shapes_(shapes),
          grows_(true) {}

    /* Allocates nothing. */
    secateur_open_runner(
        const secateur_model &model, int (*shapes)(const secateur_call *), const char *digest,
        ::std::span<::std::byte> workspace, const secateur_options &options) noexcept
        : secateur_base(model, digest, workspace, options), shapes_(shapes), grows_(false) {}

    /* How many rows the memory of caches has room for, in all runs from now on; 0: those that they
     * hold. An output that continues an input may then be the same memory as that. */
    void set_capacity(::std::int64_t rows) noexcept { call_.capacity = rows; }

  protected:
    using inputs_type = ::std::array<secateur_input, Inputs>;
    using outputs_type = ::std::array<secateur_output, Outputs>;

    template <class T, ::std::size_t Rank>
    static secateur_input input(const secateur_view<T, Rank> &t) noexcept {
        return {t.data.data(), t.data.size_bytes(), t.dimensions.data(), Rank};
    }

    template <class T, ::std::size_t Rank>
    static secateur_output output(secateur_view<T, Rank> &t) noexcept {
        return {t.data.data(), t.data.size_bytes(), t.dimensions.data(), Rank};
    }

    int find_shapes(const inputs_type &inputs, const outputs_type &outputs) noexcept {
        if (!fits()) return SECATEUR_BAD_CALL;
        secateur_call call = call_on(inputs, outputs);
        return shapes_(&call);
    }

    int run_tensors(const inputs_type &inputs, const outputs_type &outputs) noexcept {
        if (!fits()) return SECATEUR_BAD_CALL;
        secateur_call call = call_on(inputs, outputs);
        if (grows_) {
            own_workspace(model_->workspace_bytes(&call));
            call.workspace = call_.workspace;
            call.workspace_bytes = call_.workspace_bytes;
        }
        return model_->run(&call);
    }

  private:
    secateur_call call_on(const inputs_type &inputs, const outputs_type &outputs) const noexcept {
        secateur_call call = call_;
        call.inputs = inputs.data();
        call.outputs = outputs.data();
        call.input_count = Inputs;
        call.output_count = Outputs;
        return call;
    }

    int (*shapes_)(const secateur_call *);
    bool grows_;
};

#endif
