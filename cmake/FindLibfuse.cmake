# Finds libfuse 3 and provides the target kvcfs::libfuse. In this order:
#   1. the static library that tools/deps/libfuse.sh built into KVC_LIBFUSE_PREFIX,
#   2. the system's fuse3, if it is 3.17 or newer,
#   3. the system's older fuse3: no passthrough; the target then defines KVCFS_FUSE_CLASSIC_ONLY.
# Both <fuse3/fuse_lowlevel.h> and <fuse_lowlevel.h> work. Sets Libfuse_FOUND and Libfuse_VERSION.

set(KVC_LIBFUSE_PREFIX "/opt/kvcfs-deps/libfuse-3.17.2" CACHE PATH
    "where tools/deps/libfuse.sh installed libfuse")

find_package(Threads REQUIRED)
find_package(PkgConfig QUIET)
unset(Libfuse_VERSION)

# No find_library here: its cached answer would outlive an installation that comes later.
if(EXISTS "${KVC_LIBFUSE_PREFIX}/lib/libfuse3.a"
   AND EXISTS "${KVC_LIBFUSE_PREFIX}/lib/pkgconfig/fuse3.pc")
  file(STRINGS "${KVC_LIBFUSE_PREFIX}/lib/pkgconfig/fuse3.pc" _kvc_libfuse_version REGEX "^Version:")
  string(REGEX REPLACE "^Version:[ ]*" "" Libfuse_VERSION "${_kvc_libfuse_version}")
  set(_kvc_libfuse_from "${KVC_LIBFUSE_PREFIX}, static")
  if(NOT TARGET kvcfs::libfuse)
    add_library(kvcfs::libfuse STATIC IMPORTED)
    set_target_properties(kvcfs::libfuse PROPERTIES
      IMPORTED_LOCATION "${KVC_LIBFUSE_PREFIX}/lib/libfuse3.a"
      INTERFACE_INCLUDE_DIRECTORIES
        "${KVC_LIBFUSE_PREFIX}/include;${KVC_LIBFUSE_PREFIX}/include/fuse3"
      INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS}")
  endif()
elseif(PkgConfig_FOUND)
  pkg_check_modules(KVC_SYSTEM_FUSE QUIET IMPORTED_TARGET fuse3)
  if(KVC_SYSTEM_FUSE_FOUND)
    set(Libfuse_VERSION "${KVC_SYSTEM_FUSE_VERSION}")
    set(_kvc_libfuse_from "system")
    if(NOT TARGET kvcfs::libfuse)
      add_library(kvcfs::libfuse INTERFACE IMPORTED)
      pkg_get_variable(_kvc_libfuse_includedir fuse3 includedir)
      set_target_properties(kvcfs::libfuse PROPERTIES
        INTERFACE_LINK_LIBRARIES "PkgConfig::KVC_SYSTEM_FUSE;Threads::Threads;${CMAKE_DL_LIBS}")
      if(IS_DIRECTORY "${_kvc_libfuse_includedir}/fuse3")
        set_property(TARGET kvcfs::libfuse PROPERTY
          INTERFACE_INCLUDE_DIRECTORIES "${_kvc_libfuse_includedir}/fuse3")
      endif()
      if(Libfuse_VERSION VERSION_LESS 3.17)
        set_property(TARGET kvcfs::libfuse PROPERTY
          INTERFACE_COMPILE_DEFINITIONS KVCFS_FUSE_CLASSIC_ONLY)
        message(WARNING "libfuse ${Libfuse_VERSION} has no passthrough (3.17 does): building with "
          "classic FUSE only. tools/deps/install.sh gets a newer one.")
      endif()
    endif()
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libfuse
  REQUIRED_VARS _kvc_libfuse_from Libfuse_VERSION
  VERSION_VAR Libfuse_VERSION
  REASON_FAILURE_MESSAGE "Run tools/deps/install.sh.")
if(Libfuse_FOUND AND NOT KVC_LIBFUSE_REPORTED STREQUAL "${Libfuse_VERSION} ${_kvc_libfuse_from}")
  message(STATUS "libfuse ${Libfuse_VERSION} (${_kvc_libfuse_from})")
  set(KVC_LIBFUSE_REPORTED "${Libfuse_VERSION} ${_kvc_libfuse_from}" CACHE INTERNAL "")
endif()
