"""What happens around a task, without pika."""
