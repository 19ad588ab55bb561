// The places of one block: nearly always one or two, which need no memory of their own.
//
// A vector in small. Threads: as a value.   Memory: beyond kNear on the heap.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <utility>

#include "rdma/transport.h"

namespace kvcfs::meta {

using rdma::NodeId;

// One sealed or published copy of a block.
struct Place {
  NodeId node;
  uint64_t generation = 0;
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 sees one in it
  friend auto operator<=>(const Place&, const Place&) = default;
};

class PlaceList {
 public:
  using value_type = Place;

  PlaceList() = default;
  PlaceList(std::initializer_list<Place> places) : PlaceList(places.begin(), places.end()) {}
  PlaceList(const Place* begin, const Place* end) { assign(begin, end); }
  PlaceList(const PlaceList& other) { Copy(other); }
  PlaceList(PlaceList&& other) noexcept { swap(other); }
  PlaceList& operator=(const PlaceList& other) {
    if (this != &other) Copy(other);
    return *this;
  }
  PlaceList& operator=(PlaceList&& other) noexcept {
    swap(other);
    return *this;
  }
  ~PlaceList() = default;

  Place* begin() { return far_ == nullptr ? near_.data() : far_.get(); }
  Place* end() { return begin() + size_; }
  const Place* begin() const { return far_ == nullptr ? near_.data() : far_.get(); }
  const Place* end() const { return begin() + size_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  Place& operator[](size_t index) { return begin()[index]; }
  const Place& operator[](size_t index) const { return begin()[index]; }

  void clear() { size_ = 0; }
  void push_back(const Place& place) { emplace_back() = place; }
  Place& emplace_back() {
    if (size_ == capacity_) Grow(2 * capacity_);
    Place& made = begin()[size_++];
    return made = {};
  }
  void assign(const Place* first, const Place* last) {
    const auto count = static_cast<uint32_t>(last - first);
    size_ = 0;
    if (count > capacity_) Grow(count);
    std::copy(first, last, begin());
    size_ = count;
  }
  friend bool operator==(const PlaceList& a, const PlaceList& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  static constexpr uint32_t kNear = 2;

  void Copy(const PlaceList& other) {
    if (far_ != nullptr || other.far_ != nullptr) return assign(other.begin(), other.end());
    near_ = other.near_;  // all of it: faster than as many as there are
    size_ = other.size_;
  }
  void swap(PlaceList& other) {
    std::swap(near_, other.near_);
    std::swap(far_, other.far_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }
  void Grow(uint32_t capacity) {
    auto grown = std::make_unique<Place[]>(capacity);
    std::copy(begin(), end(), grown.get());
    far_ = std::move(grown);
    capacity_ = capacity;
  }

  std::array<Place, kNear> near_;
  std::unique_ptr<Place[]> far_;
  uint32_t size_ = 0, capacity_ = kNear;
};

}  // namespace kvcfs::meta
