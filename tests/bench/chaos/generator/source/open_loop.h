/* An open-loop HTTP load generator: the types that its files share.
 *
 * The arrivals are planned before the run. The event loop writes the fate of each into its row, and the report is
 * counted from the rows. So no arrival can be lost, and every count agrees with every other.
 */
#ifndef OPEN_LOOP_H
#define OPEN_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define US_NS 1000LL
#define MS_NS 1000000LL
#define SECOND_NS 1000000000LL

#define MAX_PHASES 64
#define MAX_HEADERS 64
#define MAX_ARRIVALS 50000000
#define MAX_CONNECTIONS 100000
#define MAX_LINE 1024 /* of the head of an answer; the rest of a longer line is ignored */
#define NO_RETRY_AFTER (-1)

struct phase {
    double rate; /* arrivals per second; 0 is a pause */
    double seconds;
    int64_t start_ns;   /* since the start of the run */
    size_t first, end;  /* its arrivals */
};

struct options {
    const char *host, *port, *method, *path, *bodies; /* bodies: a file, or NULL for requests without a body */
    const char *headers[MAX_HEADERS];
    size_t header_count;
    struct phase phases[MAX_PHASES];
    size_t phase_count;
    bool poisson, fresh; /* fresh: each arrival opens a connection */
    uint64_t seed;
    int64_t give_up_ns, window_ns;
    size_t max_connections;
};

enum fate {
    PENDING,
    ANSWERED, /* code: the status */
    GAVE_UP,  /* code: enum stage */
    NOT_SENT, /* as many connections were open as allowed */
    FAILED,   /* code: errno of opening the connection */
    RESET,    /* the server broke the connection off; code: 1 if it was stale */
    CLOSED,   /* the server closed it before the answer was complete; code: as for RESET */
    MALFORMED,
};

enum stage {
    UNSENT, /* this generator came too late */
    CONNECTING,
    WAITING,
};

struct arrival {
    int64_t due_ns;      /* since the start of the run */
    uint32_t lag_us;     /* from when it was due to when this generator turned to it */
    uint32_t latency_us; /* from when it was due to the last byte of the answer */
    int32_t retry_after; /* seconds, or NO_RETRY_AFTER */
    int32_t connection;  /* while it is pending */
    uint16_t code;
    uint8_t fate;
    bool problem_json;
};

struct request {
    char *bytes;
    size_t length;
};

struct run {
    const struct options *options;
    struct arrival *arrivals;
    size_t arrival_count;
    struct request *requests;
    size_t request_count;
    struct sockaddr_storage address;
    socklen_t address_length;
    /* Written by the event loop. */
    int64_t started_ns; /* of CLOCK_MONOTONIC */
    size_t opened, peak, reused, closed_idle, unsolicited;
};

enum answer_state { STATUS_LINE, HEADERS, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, UNTIL_CLOSE, COMPLETE };

struct answer {
    enum answer_state state;
    bool to_head; /* the request was HEAD, so no body follows */
    bool started, chunked, has_length, keep_alive, problem_json;
    char last; /* byte of the line */
    uint16_t status, line_length;
    int32_t retry_after;
    uint32_t head_bytes;
    uint64_t left; /* of the body or of the chunk */
    char line[MAX_LINE];
};

enum progress { MORE, DONE, BAD };

/* options.c */
void parse_options(struct options *options, int count, char **words);
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *allocate(size_t count, size_t size); /* zeros */

/* answer.c */
void start_answer(struct answer *answer, bool to_head);
enum progress feed_answer(struct answer *answer, const char *data, size_t length, size_t *used);

/* loop.c */
void run_loop(struct run *run);

/* report.c */
void print_report(const struct run *run);

#endif
