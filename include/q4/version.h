/* The version of these headers, for C and C++; q4_version() and q4::version() say that of the library that runs. */
#ifndef Q4_VERSION_H
#define Q4_VERSION_H

#define Q4_VERSION_MAJOR 0
#define Q4_VERSION_MINOR 2
#define Q4_VERSION_PATCH 0
#define Q4_VERSION "0.2.0"

#endif /* Q4_VERSION_H */
