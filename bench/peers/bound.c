/* The bound: what a C program on librabbitmq gets out of the same RabbitMQ and the same queue.

   bound publish HOST PORT QUEUE FILE     a line a task, persistent, at most 1,000 unconfirmed
   bound work HOST PORT QUEUE MARK        $BENCH_PREFETCH, an ack a task, for ever; its progress in the file MARK

   gcc -O2 bound.c -lrabbitmq -o bound
*/
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#define WINDOW 1000

static amqp_connection_state_t connection;

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "bound: %s failed\n", what);
        exit(1);
    }
}

static void check_reply(const char *what) {
    check(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, what);
}

static void open_connection(const char *host, int port) {
    connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    check(socket && !amqp_socket_open(socket, host, port), "connect");
    amqp_rpc_reply_t reply =
        amqp_login(connection, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest");
    check(reply.reply_type == AMQP_RESPONSE_NORMAL, "login");
    amqp_channel_open(connection, 1);
    check_reply("channel.open");
}

static void publish(amqp_bytes_t queue, const char *path) {
    amqp_basic_properties_t properties = {0};
    properties._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
    properties.delivery_mode = 2;
    properties.content_type = amqp_cstring_bytes("application/json");
    amqp_confirm_select(connection, 1);
    check_reply("confirm.select");
    FILE *lines = fopen(path, "r");
    check(lines != NULL, "open");
    static unsigned char confirmed[WINDOW * 2]; /* of the tags in flight, by tag modulo its size */
    uint64_t published = 0, oldest = 1;         /* oldest: the first tag that is not confirmed */
    char *line = NULL;
    size_t size = 0;
    ssize_t length = 0;
    while (length >= 0 || oldest <= published) {
        if (length >= 0 && published - oldest + 1 < WINDOW) {
            length = getline(&line, &size, lines);
            if (length > 0) {
                amqp_bytes_t body = {line[length - 1] == '\n' ? length - 1 : length, line};
                check(!amqp_basic_publish(connection, 1, amqp_empty_bytes, queue, 1, 0, &properties, body),
                      "basic.publish");
                confirmed[++published % (WINDOW * 2)] = 0;
            }
            continue;
        }
        do { /* one confirm, and those that have come with it */
            amqp_frame_t frame;
            check(!amqp_simple_wait_frame(connection, &frame), "waiting for a confirm");
            check(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD,
                  "a confirm");
            amqp_basic_ack_t *ack = frame.payload.method.decoded;
            for (uint64_t tag = ack->multiple ? oldest : ack->delivery_tag; tag <= ack->delivery_tag; tag++)
                confirmed[tag % (WINDOW * 2)] = 1;
            while (oldest <= published && confirmed[oldest % (WINDOW * 2)])
                oldest++;
            amqp_maybe_release_buffers(connection);
        } while (amqp_frames_enqueued(connection) || amqp_data_in_buffer(connection));
    }
}

static double now(void) {
    struct timeval t;
    gettimeofday(&t, NULL);
    return t.tv_sec + t.tv_usec / 1e6;
}

struct mark { /* as in common.py */
    uint64_t count;
    double first, last, end;
};

static void work(amqp_bytes_t queue, const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    check(fd >= 0 && !ftruncate(fd, sizeof(struct mark)), "the mark");
    struct mark *mark = mmap(NULL, sizeof(struct mark), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    amqp_basic_qos(connection, 1, 0, atoi(getenv("BENCH_PREFETCH")), 0);
    check_reply("basic.qos");
    amqp_basic_consume(connection, 1, queue, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check_reply("basic.consume");
    for (;;) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, NULL, 0);
        check(reply.reply_type == AMQP_RESPONSE_NORMAL, "a delivery");
        mark->last = mark->end = now();
        if (mark->count == 0)
            mark->first = mark->last;
        mark->count++;
        amqp_basic_ack(connection, 1, envelope.delivery_tag, 0);
        amqp_destroy_envelope(&envelope);
    }
}

int main(int argc, char **argv) {
    check(argc == 6, "bound publish|work HOST PORT QUEUE FILE: this call");
    open_connection(argv[2], atoi(argv[3]));
    if (!strcmp(argv[1], "publish"))
        publish(amqp_cstring_bytes(argv[4]), argv[5]);
    else
        work(amqp_cstring_bytes(argv[4]), argv[5]);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    return 0;
}
