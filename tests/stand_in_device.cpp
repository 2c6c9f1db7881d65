// A device for PyTorch that is none: memory of the host under the name of another device, in which nothing may be mixed with
// tensors of the processor, as on a GPU. Read by stand_in_device.py, which says what it is for.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <mutex>

namespace {

const c10::Device device(c10::DeviceType::PrivateUse1, 0);

// What lives in its memory, and the most that did.
std::mutex lock;
int64_t live = 0, peak = 0, total = int64_t(8) << 30;
std::atomic<int64_t> waits{0};

struct Block {
  void* place;
  int64_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  {
    std::lock_guard<std::mutex> guard(lock);
    live -= block->size;
  }
  std::free(block->place);
  delete block;
}

struct Memory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, device};
    std::lock_guard<std::mutex> guard(lock);
    TORCH_CHECK_WITH(OutOfMemoryError, live + int64_t(size) <= total, "the stand-in device is out of memory");
    void* place = std::aligned_alloc(64, (size + 63) / 64 * 64);
    live += size;
    peak = std::max(peak, live);
    return {place, new Block{place, int64_t(size)}, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> guard(lock);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = stats.reserved_bytes[0].current = live;
    stats.allocated_bytes[0].peak = stats.reserved_bytes[0].peak = peak;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> guard(lock);
    peak = live;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> guard(lock);
    return {size_t(total - live), size_t(total)};
  }
};

Memory memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return device; }
  c10::Device getDevice() const override { return device; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(const c10::DeviceIndex) const override { ++waits; }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

bool here(const at::Tensor& tensor) { return tensor.defined() && tensor.device().is_privateuseone(); }

// The same numbers at the same place, as a tensor of the processor.
at::Tensor seen(const at::Tensor& tensor) {
  if (!here(tensor)) return tensor;
  auto options = tensor.options().device(at::kCPU);
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), options);  // may be given a size, as an output
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

at::Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      dtype.value_or(at::kFloat));
}

at::Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), dtype.value_or(at::kFloat), format);
}

// A result of the processor, taken to the device in its layout.
at::Tensor taken(const at::Tensor& result) {
  if (!result.defined()) return result;
  auto dense = result.is_non_overlapping_and_dense() ? result : result.contiguous();
  auto made = at::empty_strided(dense.sizes(), dense.strides(), dense.options().device(device));
  seen(made).copy_(dense);
  return made;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  seen(to).copy_(seen(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  const_cast<at::Tensor&>(to).resize_(self.sizes());
  seen(to).copy_(seen(self));
  return to;
}

at::Tensor as_strided(
    const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor unfold(const at::Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  return at::native::unfold(self, dimension, size, step);
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto wanted = C10_AS_INTARRAYREF_SLOW(size);
  auto* impl = self.unsafeGetTensorImpl();
  auto bytes = int64_t(self.element_size()) * (self.storage_offset() + c10::multiply_integers(wanted));
  if (bytes > int64_t(self.storage().nbytes())) {
    auto place = memory.allocate(bytes);
    if (self.storage().nbytes()) std::memcpy(place.get(), self.storage().data(), self.storage().nbytes());
    self.storage().set_data_ptr_noswap(std::move(place));
    self.storage().set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(wanted);
  return self;
}

at::Tensor& set_source_offset(
    at::Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), std::optional<int64_t>(offset.guard_int(__FILE__, __LINE__)));
  return self;
}

at::Tensor& set_source(at::Tensor& self, at::Storage source) {
  auto count = int64_t(source.nbytes() / self.element_size());
  return set_source_offset(self, std::move(source), 0, {c10::SymInt(count)}, {c10::SymInt(1)});
}

at::Scalar local_scalar(const at::Tensor& self) { return at::_local_scalar_dense(seen(self)); }

int64_t sdp_choice(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool, std::optional<double>,
    bool) {
  return 0;  // by plain operations
}

void same_device(const char* name, const at::Tensor& one, const at::Tensor& other) {
  TORCH_CHECK(
      one.device() == other.device() || one.dim() == 0 || other.dim() == 0,
      "Expected all tensors to be on the same device, but found at least two devices, ", one.device(), " and ", other.device(), " (",
      name, ")");
}

at::Tensor convolution(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  same_device("convolution", x, weight);
  if (bias && bias->defined()) same_device("convolution", x, *bias);
  return taken(at::convolution_symint(
      seen(x), seen(weight), bias ? std::optional<at::Tensor>(seen(*bias)) : std::nullopt, stride, padding, dilation, transposed,
      output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  same_device("convolution_backward", grad, x);
  same_device("convolution_backward", grad, weight);
  std::vector<c10::SymInt> bias{weight.sym_size(0)};
  auto found = at::convolution_backward_symint(
      seen(grad), seen(x), seen(weight), mask[2] ? at::OptionalSymIntArrayRef(bias) : std::nullopt, stride, padding, dilation, transposed,
      output_padding, groups, mask);
  return {taken(std::get<0>(found)), taken(std::get<1>(found)), taken(std::get<2>(found))};
}

// Every other operation: refused where a tensor of the processor with a dimension is among its tensors, else computed by the
// processor on the same memory.
void by_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = toString(schema.operator_name());
  auto arguments = torch::jit::last(*stack, schema.arguments().size());
  const size_t begin = stack->size() - schema.arguments().size();
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;  // of the device, of the processor
  std::optional<at::Tensor> elsewhere;
  auto exchanged = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!here(tensor)) {
      if (tensor.dim() > 0 && !elsewhere) elsewhere = tensor;
      return tensor;
    }
    for (const auto& [mine, theirs] : pairs)
      if (mine.is_same(tensor)) return theirs;
    pairs.emplace_back(tensor, seen(tensor));
    return pairs.back().second;
  };
  std::vector<c10::IValue> given(arguments.begin(), arguments.end());
  for (auto& value : given) {
    if (value.isTensor()) {
      value = exchanged(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(exchanged(tensor));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (std::optional<at::Tensor> tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional<at::Tensor>(exchanged(*tensor)) : std::nullopt);
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(at::kCPU);
    }
  }
  TORCH_CHECK(
      !elsewhere || pairs.empty(), "Expected all tensors to be on the same device, but found at least two devices, standin:0 and cpu (",
      name, ")");
  stack->resize(begin);
  for (auto& value : given) stack->push_back(std::move(value));
  op.callBoxed(stack);
  for (const auto& [mine, theirs] : pairs)
    if (mine.sizes() != theirs.sizes()) copy_from_and_resize(theirs, mine);
  auto back = [&](const at::Tensor& result) {
    if (!result.defined()) return result;
    for (const auto& [mine, theirs] : pairs)
      if (result.is_same(theirs)) return mine;
    for (const auto& [mine, theirs] : pairs)
      TORCH_CHECK(
          !result.numel() || !theirs.numel() || result.storage().data() != theirs.storage().data(), name,
          " gives a view, which the stand-in device does not know");
    return taken(result);
  };
  for (size_t index = begin; index < stack->size(); ++index) {
    auto& value = (*stack)[index];
    if (value.isTensor()) {
      value = back(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(back(tensor));
      value = list;
    }
  }
}

bool ready = [] {
  c10::SetAllocator(c10::DeviceType::PrivateUse1, &memory);
  c10::impl::registerDeviceGuard(c10::DeviceType::PrivateUse1, new Guard());
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_processor>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", unfold);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage", set_source);
  m.impl("set_.source_Storage_storage_offset", set_source_offset);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("_fused_sdp_choice", sdp_choice);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}

}  // namespace

extern "C" int64_t stand_in_waits() { return waits; }

extern "C" void stand_in_has(int64_t bytes) { total = bytes; }
