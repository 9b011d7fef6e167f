# find_package(secateur) with secateur_DIR as `secateur cmake-dir` prints it.
#
#   secateur_add_model(NAME MODEL FILE TARGET NAME
#     [THREADS none|caller|own] [LABELS FILE] [WEIGHTS_APART] [OPTIONS ...])
#
# makes NAME a library to link with, whose header is NAME.h. It is compiled anew when the model,
# weights in files beside it, the labels or the options change. OPTIONS go to `secateur compile`.

cmake_minimum_required(VERSION 3.20)

if(NOT SECATEUR_EXECUTABLE)
  # Of the same installation: in .../lib/pythonX.Y/site-packages/secateur/cmake, or found by name.
  get_filename_component(_secateur_prefix "${CMAKE_CURRENT_LIST_DIR}/../../../../.." ABSOLUTE)
  find_program(
    SECATEUR_EXECUTABLE secateur
    HINTS "${_secateur_prefix}/bin"
    DOC "The secateur command"
    NO_CMAKE_FIND_ROOT_PATH
  )
endif()
if(NOT SECATEUR_EXECUTABLE)
  set(secateur_FOUND FALSE)
  set(secateur_NOT_FOUND_MESSAGE "the command secateur isn't there: set SECATEUR_EXECUTABLE")
  return()
endif()

function(secateur_add_model name)
  cmake_parse_arguments(
    PARSE_ARGV 1 arg "WEIGHTS_APART" "MODEL;TARGET;THREADS;LABELS" "OPTIONS"
  )
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "secateur_add_model(${name}): unknown ${arg_UNPARSED_ARGUMENTS}")
  endif()
  foreach(needed MODEL TARGET)
    if(NOT arg_${needed})
      message(FATAL_ERROR "secateur_add_model(${name}): ${needed} is missing")
    endif()
  endforeach()
  get_filename_component(model "${arg_MODEL}" ABSOLUTE)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/${name}")
  set(library "${folder}/lib${name}.a")
  set(command
      "${SECATEUR_EXECUTABLE}" compile "${model}" -o "${folder}" --target "${arg_TARGET}"
      --format library --name "${name}" --depfile "${folder}.d"
  )
  set(depends "${model}")
  if(arg_THREADS)
    list(APPEND command --threads "${arg_THREADS}")
  endif()
  if(arg_LABELS)
    get_filename_component(labels "${arg_LABELS}" ABSOLUTE)
    list(APPEND command --labels "${labels}")
    list(APPEND depends "${labels}")
  endif()
  if(arg_WEIGHTS_APART)
    list(APPEND command --weights-apart)
  endif()
  list(APPEND command ${arg_OPTIONS})
  set(made "${library}" "${folder}/${name}.h")
  if(arg_WEIGHTS_APART)
    list(APPEND made "${folder}/${name}.weights")
  endif()
  add_custom_command(
    OUTPUT ${made}
    BYPRODUCTS "${folder}/lib${name}.so" "${folder}/${name}.json" "${folder}/${name}.pc"
    COMMAND ${command}
    DEPENDS ${depends}
    DEPFILE "${folder}.d"
    COMMENT "Compiling ${name} for ${arg_TARGET}"
    VERBATIM
  )
  add_custom_target(${name}_files DEPENDS ${made})
  file(MAKE_DIRECTORY "${folder}")
  add_library(${name} STATIC IMPORTED GLOBAL)
  set_target_properties(
    ${name} PROPERTIES IMPORTED_LOCATION "${library}" INTERFACE_INCLUDE_DIRECTORIES "${folder}"
  )
  add_dependencies(${name} ${name}_files)
  target_link_libraries(${name} INTERFACE m)
  if(arg_THREADS STREQUAL "own")
    find_package(Threads REQUIRED)
    target_link_libraries(${name} INTERFACE Threads::Threads)
  endif()
endfunction()
