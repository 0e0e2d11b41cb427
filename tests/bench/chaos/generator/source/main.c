/* Plans the arrivals, builds the requests, and runs. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>

#include "open_loop.h"

/* splitmix64: the next number of a sequence, from 0 to below 1. */
static double next_random(uint64_t *state)
{
    uint64_t mixed = *state += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    return (double)((mixed ^ (mixed >> 31)) >> 11) * 0x1p-53;
}

/* Adds the arrivals of a phase to the plan, or only counts them if there is none. Returns their number. */
static size_t plan_phase(const struct phase *phase, const struct options *options, uint64_t *seed,
                         struct arrival *arrivals)
{
    size_t count = 0, constant = (size_t)llround(phase->rate * phase->seconds);
    if (arrivals == NULL && !options->poisson)
        return constant;
    for (double due = 0; phase->rate > 0 && count <= MAX_ARRIVALS; count++) {
        if (options->poisson)
            due += -log1p(-next_random(seed)) / phase->rate;
        else
            due = (double)count / phase->rate;
        if (options->poisson ? due >= phase->seconds : count == constant)
            break;
        if (arrivals != NULL) {
            arrivals[count].due_ns = phase->start_ns + (int64_t)(due * SECOND_NS);
            arrivals[count].retry_after = NO_RETRY_AFTER;
        }
    }
    return count;
}

static void plan_arrivals(struct run *run, struct options *options)
{
    int64_t start_ns = 0;
    uint64_t seed = options->seed;
    for (size_t index = 0; index < options->phase_count; index++) {
        struct phase *phase = &options->phases[index];
        phase->start_ns = start_ns;
        start_ns += (int64_t)(phase->seconds * SECOND_NS);
        phase->first = run->arrival_count;
        run->arrival_count += plan_phase(phase, options, &seed, NULL);
        phase->end = run->arrival_count;
        if (run->arrival_count > MAX_ARRIVALS)
            fail("the phases have more than %d arrivals", MAX_ARRIVALS);
    }
    run->arrivals = allocate(run->arrival_count, sizeof *run->arrivals);
    seed = options->seed;
    for (size_t index = 0; index < options->phase_count; index++)
        plan_phase(&options->phases[index], options, &seed, run->arrivals + options->phases[index].first);
}

/* Adds a request to those that are sent in turn. `body` is NULL if it has none. */
static void add_request(struct run *run, const char *body, size_t length)
{
    const struct options *options = run->options;
    struct request request;
    FILE *stream = open_memstream(&request.bytes, &request.length);
    bool names_host = false;
    fprintf(stream, "%s %s HTTP/1.1\r\n", options->method, options->path);
    for (size_t index = 0; index < options->header_count; index++) {
        names_host |= strncasecmp(options->headers[index], "host:", 5) == 0;
        fprintf(stream, "%s\r\n", options->headers[index]);
    }
    bool brackets = strchr(options->host, ':') != NULL; /* an address of IPv6 */
    if (!names_host)
        fprintf(stream, brackets ? "Host: [%s]:%s\r\n" : "Host: %s:%s\r\n", options->host, options->port);
    if (body != NULL)
        fprintf(stream, "Content-Length: %zu\r\n", length);
    fputs("\r\n", stream);
    if (length > 0)
        fwrite(body, length, 1, stream);
    if (fclose(stream) != 0)
        fail("no memory for the requests");
    run->requests = realloc(run->requests, (run->request_count + 1) * sizeof request);
    if (run->requests == NULL)
        fail("no memory for the requests");
    run->requests[run->request_count++] = request;
}

static void build_requests(struct run *run)
{
    const char *path = run->options->bodies;
    if (path == NULL) {
        add_request(run, NULL, 0);
        return;
    }
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail("--bodies %s: %s", path, strerror(errno));
    char *line = NULL;
    size_t size = 0;
    for (ssize_t length; (length = getline(&line, &size, file)) >= 0;)
        add_request(run, line, (size_t)(length - (line[length - 1] == '\n')));
    if (ferror(file))
        fail("--bodies %s: it cannot be read", path);
    if (run->request_count == 0)
        fail("--bodies %s: it is empty", path);
    free(line);
    fclose(file);
}

static void resolve(struct run *run)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *address;
    int fault = getaddrinfo(run->options->host, run->options->port, &hints, &address);
    if (fault != 0)
        fail("--host %s: %s", run->options->host, gai_strerror(fault));
    memcpy(&run->address, address->ai_addr, address->ai_addrlen);
    run->address_length = address->ai_addrlen;
    freeaddrinfo(address);
}

/* Allows as many open files as this user may have. */
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int count, char **words)
{
    struct options options;
    struct run run = {.options = &options};
    parse_options(&options, count, words);
    plan_arrivals(&run, &options);
    build_requests(&run);
    resolve(&run);
    raise_file_limit();
    run_loop(&run);
    print_report(&run);
    return 0;
}
