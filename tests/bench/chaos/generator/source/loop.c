/* The event loop: sends arrivals when they are due, reads answers, and gives up in time. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "open_loop.h"

#define MAX_EVENTS 256
#define MAX_LAUNCHES 64 /* before answers are read again */
#define NONE (-1)

struct connection {
    int fd;
    int32_t arrival; /* NONE: it is idle */
    int32_t next, previous; /* in the list of idle ones; `next` also in the list of free rows */
    bool connecting, watches_output, reused;
    size_t sent;
    struct answer answer;
};

struct loop {
    struct run *run;
    const struct options *options;
    struct connection *connections;
    int32_t first_idle, first_free;
    size_t open;
    size_t next, oldest; /* arrivals: the next to send, and the first that may be pending */
    bool to_head;
    int epoll;
    char buffer[65536];
};

static int64_t clock_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND_NS + time.tv_nsec;
}

static int64_t elapsed_ns(const struct loop *loop) { return clock_ns() - loop->run->started_ns; }

static int32_t index_of(const struct loop *loop, const struct connection *connection)
{
    return (int32_t)(connection - loop->connections);
}

static const struct request *request_of(const struct loop *loop, const struct connection *connection)
{
    return &loop->run->requests[(size_t)connection->arrival % loop->run->request_count];
}

static void settle(struct arrival *arrival, enum fate fate, int code)
{
    arrival->fate = (uint8_t)fate;
    arrival->code = (uint16_t)code;
}

static void add_idle(struct loop *loop, struct connection *connection)
{
    connection->arrival = NONE;
    connection->previous = NONE;
    connection->next = loop->first_idle;
    if (connection->next != NONE)
        loop->connections[connection->next].previous = index_of(loop, connection);
    loop->first_idle = index_of(loop, connection);
}

static void remove_idle(struct loop *loop, struct connection *connection)
{
    if (connection->next != NONE)
        loop->connections[connection->next].previous = connection->previous;
    if (connection->previous != NONE)
        loop->connections[connection->previous].next = connection->next;
    else
        loop->first_idle = connection->next;
}

static void close_connection(struct loop *loop, struct connection *connection)
{
    close(connection->fd);
    connection->next = loop->first_free;
    loop->first_free = index_of(loop, connection);
    loop->open--;
}

/* Ends the arrival of a connection without an answer. */
static void end_arrival(struct loop *loop, struct connection *connection, enum fate fate, int code)
{
    settle(&loop->run->arrivals[connection->arrival], fate, code);
    close_connection(loop, connection);
}

static void watch(struct loop *loop, struct connection *connection, int operation, bool output)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (output ? EPOLLOUT : 0)};
    event.data.u32 = (uint32_t)index_of(loop, connection);
    connection->watches_output = output;
    if (epoll_ctl(loop->epoll, operation, connection->fd, &event) != 0)
        fail("epoll_ctl: %s", strerror(errno));
}

/* Returns the connection, or NULL with the reason in errno. */
static struct connection *open_connection(struct loop *loop)
{
    int fd = socket(loop->run->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return NULL;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    bool connected = connect(fd, (struct sockaddr *)&loop->run->address, loop->run->address_length) == 0;
    if (!connected && errno != EINPROGRESS) {
        int reason = errno;
        close(fd);
        errno = reason;
        return NULL;
    }
    struct connection *connection = &loop->connections[loop->first_free];
    loop->first_free = connection->next;
    connection->fd = fd;
    connection->connecting = !connected;
    connection->reused = false;
    watch(loop, connection, EPOLL_CTL_ADD, !connected);
    loop->run->opened++;
    if (++loop->open > loop->run->peak)
        loop->run->peak = loop->open;
    return connection;
}

/* Sends what is left of the request. After an error, reading tells whether an answer came before it. */
static void send_request(struct loop *loop, struct connection *connection)
{
    const struct request *request = request_of(loop, connection);
    while (connection->sent < request->length) {
        size_t left = request->length - connection->sent;
        ssize_t sent = send(connection->fd, request->bytes + connection->sent, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            break;
        connection->sent += (size_t)sent;
    }
    bool wait = connection->sent < request->length && errno == EAGAIN;
    if (wait != connection->watches_output)
        watch(loop, connection, EPOLL_CTL_MOD, wait);
}

static void launch(struct loop *loop, size_t index)
{
    struct arrival *arrival = &loop->run->arrivals[index];
    int64_t late_ns = elapsed_ns(loop) - arrival->due_ns;
    arrival->lag_us = (uint32_t)(late_ns / US_NS);
    if (late_ns >= loop->options->give_up_ns) {
        settle(arrival, GAVE_UP, UNSENT);
        return;
    }
    struct connection *connection;
    if (loop->first_idle != NONE) {
        connection = &loop->connections[loop->first_idle];
        remove_idle(loop, connection);
        connection->reused = true;
        loop->run->reused++;
    } else if (loop->first_free == NONE) {
        settle(arrival, NOT_SENT, 0);
        return;
    } else if ((connection = open_connection(loop)) == NULL) {
        settle(arrival, FAILED, errno);
        return;
    }
    arrival->connection = index_of(loop, connection);
    connection->arrival = (int32_t)index;
    connection->sent = 0;
    start_answer(&connection->answer, loop->to_head);
    if (!connection->connecting)
        send_request(loop, connection);
}

static void finish(struct loop *loop, struct connection *connection, bool may_stay)
{
    struct arrival *arrival = &loop->run->arrivals[connection->arrival];
    const struct answer *answer = &connection->answer;
    bool whole_request = connection->sent == request_of(loop, connection)->length;
    arrival->latency_us = (uint32_t)((elapsed_ns(loop) - arrival->due_ns) / US_NS);
    arrival->retry_after = answer->retry_after;
    arrival->problem_json = answer->problem_json;
    settle(arrival, ANSWERED, answer->status);
    if (may_stay && whole_request && answer->keep_alive && !loop->options->fresh)
        add_idle(loop, connection);
    else
        close_connection(loop, connection);
}

static void receive(struct loop *loop, struct connection *connection)
{
    ssize_t received = recv(connection->fd, loop->buffer, sizeof loop->buffer, 0);
    if (received < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (connection->arrival == NONE) {
        *(received > 0 ? &loop->run->unsolicited : &loop->run->closed_idle) += 1;
        remove_idle(loop, connection);
        close_connection(loop, connection);
    } else if (received == 0 && connection->answer.state == UNTIL_CLOSE) {
        finish(loop, connection, false);
    } else if (received <= 0) {
        end_arrival(loop, connection, received < 0 ? RESET : CLOSED, connection->reused && !connection->answer.started);
    } else {
        size_t used;
        enum progress progress = feed_answer(&connection->answer, loop->buffer, (size_t)received, &used);
        bool surplus = progress == DONE && used < (size_t)received;
        loop->run->unsolicited += surplus;
        if (progress == BAD)
            end_arrival(loop, connection, MALFORMED, 0);
        else if (progress == DONE)
            finish(loop, connection, !surplus);
    }
}

static void handle_event(struct loop *loop, const struct epoll_event *event)
{
    struct connection *connection = &loop->connections[event->data.u32];
    if (connection->connecting) {
        int reason = 0;
        getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &reason, &(socklen_t){sizeof reason});
        if (reason != 0) {
            end_arrival(loop, connection, FAILED, reason);
            return;
        }
        connection->connecting = false;
    }
    if (event->events & EPOLLOUT)
        send_request(loop, connection);
    if (event->events & ~(uint32_t)EPOLLOUT)
        receive(loop, connection);
}

/* Gives up what is pending too long. All wait equally long, so the order of the arrivals is that of their ends. */
static void give_up(struct loop *loop, int64_t now_ns)
{
    for (; loop->oldest < loop->next; loop->oldest++) {
        struct arrival *arrival = &loop->run->arrivals[loop->oldest];
        if (arrival->fate != PENDING)
            continue;
        if (now_ns < arrival->due_ns + loop->options->give_up_ns)
            return;
        struct connection *connection = &loop->connections[arrival->connection];
        end_arrival(loop, connection, GAVE_UP, connection->connecting ? CONNECTING : WAITING);
    }
}

/* Sleeps until something can be read or written, the next arrival is due, or the oldest gives up. */
static void wait_for_events(struct loop *loop)
{
    int64_t until_ns = INT64_MAX;
    if (loop->next < loop->run->arrival_count)
        until_ns = loop->run->arrivals[loop->next].due_ns;
    if (loop->oldest < loop->next) {
        int64_t ends_ns = loop->run->arrivals[loop->oldest].due_ns + loop->options->give_up_ns;
        until_ns = ends_ns < until_ns ? ends_ns : until_ns;
    }
    int64_t left_ns = until_ns - elapsed_ns(loop);
    if (until_ns == INT64_MAX || left_ns <= 0)
        return;
    struct pollfd ready = {.fd = loop->epoll, .events = POLLIN};
    ppoll(&ready, 1, &(struct timespec){left_ns / SECOND_NS, left_ns % SECOND_NS}, NULL);
}

void run_loop(struct run *run)
{
    size_t limit = run->options->max_connections;
    struct loop *loop = allocate(1, sizeof *loop);
    struct connection *connections = allocate(limit, sizeof *connections);
    for (size_t index = 0; index < limit; index++)
        connections[index].next = index + 1 < limit ? (int32_t)index + 1 : NONE;
    *loop = (struct loop){.run = run, .options = run->options, .connections = connections, .first_idle = NONE};
    loop->to_head = strcasecmp(run->options->method, "HEAD") == 0;
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll < 0)
        fail("epoll_create1: %s", strerror(errno));
    run->started_ns = clock_ns();
    while (loop->oldest < run->arrival_count) {
        int64_t now_ns = elapsed_ns(loop);
        give_up(loop, now_ns);
        for (int count = 0; count < MAX_LAUNCHES && loop->next < run->arrival_count; count++) {
            if (run->arrivals[loop->next].due_ns > now_ns)
                break;
            launch(loop, loop->next++);
        }
        wait_for_events(loop);
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(loop->epoll, events, MAX_EVENTS, 0);
        for (int index = 0; index < count; index++)
            handle_event(loop, &events[index]);
    }
}
